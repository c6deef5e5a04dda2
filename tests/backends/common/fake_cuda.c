/* A CUDA driver that runs nothing: it notes what each thread's last launch was handed. */
#include "cuda.h"
#include <sched.h>
#include <string.h>

#define MOST 160
#define WIDEST 128

int fake_sizes[MOST], fake_count; /* the kernel's parameters, in bytes */
int fake_status;                  /* what launches return */
int fake_pause;                   /* let other threads run before a launch is read */
static __thread int has_context = 1;

typedef struct {
  int launches;
  CUlaunchConfig config;
  CUlaunchAttribute attribute;
  CUfunction function;
  unsigned char bytes[MOST][WIDEST];
} Record;
static __thread Record record;

Record *fake_record(void) { return &record; }

void fake_lose_context(void) { has_context = 0; }

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **parameters,
                          void **extra) {
  if (!has_context) return CUDA_ERROR_INVALID_CONTEXT;
  for (int i = 0; i < fake_pause; i++) sched_yield();
  record.launches++;
  record.config = *config;
  memset(&record.attribute, 0, sizeof record.attribute);
  if (config->numAttrs) record.attribute = config->attrs[0];
  record.function = function;
  memset(record.bytes, 0, sizeof record.bytes);
  for (int i = 0; i < fake_count; i++) memcpy(record.bytes[i], parameters[i], fake_sizes[i]);
  return fake_status;
}

/* The address, and all else that was asked for, one after the other. */
CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                void *address, const cuuint64_t *sizes, const cuuint64_t *strides,
                                const cuuint32_t *box, const cuuint32_t *steps,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  cuuint64_t *words = (cuuint64_t *)map;
  if ((cuuint64_t)map % 64 || rank > 4) return CUDA_ERROR_INVALID_VALUE;
  memset(map, 0, sizeof *map);
  words[0] = (cuuint64_t)address;
  words[1] = type << 24 | rank << 16 | interleave << 12 | swizzle << 8 | promotion << 4 | fill;
  for (cuuint32_t i = 0; i < rank; i++) {
    words[2 + i] = sizes[i];
    words[6 + i] = i + 1 < rank ? strides[i] : 0;
    words[10 + i] = (cuuint64_t)box[i] << 32 | steps[i];
  }
  return CUDA_SUCCESS;
}

CUresult cuTensorMapReplaceAddress(CUtensorMap *map, void *address) {
  *(cuuint64_t *)map = (cuuint64_t)address;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = (CUcontext)(has_context ? &record : 0);
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  has_context = context != 0;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int index) {
  *device = index;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = (CUcontext)&record;
  return CUDA_SUCCESS;
}

CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute, CUdeviceptr pointer) {
  *(CUdeviceptr *)data = pointer;
  return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult status, const char **text) {
  *text = "CUDA_ERROR_MADE_UP";
  return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult status, const char **text) {
  *text = "made up for a test";
  return CUDA_SUCCESS;
}
