/* Prefill and backward in tiles, for the instruction set that this file is compiled for. */

#include <math.h>
#include <string.h>

#include "vec.h"

#include "tiles.h"

#ifdef PA_AMX
#define LANE_VECTORS 2
#else
#define LANE_VECTORS 3
#endif
#include "elements.h"
#include "pack.h"
#include "visible.h"
#include "scores.h"
#include "keys.h"
#ifdef PA_AMX
#include "engine_amx.h"
#else
#include "gemm.h"
#include "engine_f32.h"
#endif
#include "softmax.h"
#include "forward.h"
#ifdef PA_AMX
#include "backward_amx.h"
#else
#include "backward_f32.h"
#endif
#include "backward.h"

const pa_tiles ISA_NAME(pa_tiles) = {
    LANES,           BLOCK_N,          CHUNK_KEYS,    forward_floats, forward_unit,
    backward_floats, backward_columns, backward_unit, backward_sum,
};
