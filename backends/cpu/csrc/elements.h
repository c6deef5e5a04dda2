/* Elements and rows of any dtype and stride as float32, and back. */

#define UNROLL _Pragma("GCC unroll 16")

static inline int64_t round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

static inline float bf16_value(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static inline float f16_value(uint16_t bits) {
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7FFF, wide;
    float value;
    if (rest >= 0x7C00) {
        wide = sign | 0x7F800000 | (rest & 0x3FF) << 13;
    } else {
        /* The exponent is rebased by a multiplication, which also normalises subnormals. */
        wide = rest << 13;
        memcpy(&value, &wide, 4);
        value *= 0x1p112f;
        memcpy(&wide, &value, 4);
        wide |= sign;
    }
    memcpy(&value, &wide, 4);
    return value;
}

static inline float element(const void *data, int64_t dtype, int64_t index) {
    if (dtype == PA_F32) return ((const float *)data)[index];
    if (dtype == PA_I8) return ((const int8_t *)data)[index];
    uint16_t bits = ((const uint16_t *)data)[index];
    return dtype == PA_BF16 ? bf16_value(bits) : f16_value(bits);
}

/* `count` elements from `index`, `step` apart. */
static void load_row(float *to, const void *data, int64_t dtype, int64_t index, int64_t step,
                     int64_t count) {
    if (step == 1 && dtype == PA_F32) {
        memcpy(to, (const float *)data + index, count * sizeof(float));
    } else if (step == 1 && dtype == PA_BF16) {
        const uint16_t *from = (const uint16_t *)data + index;
        for (int64_t i = 0; i < count; i++) to[i] = bf16_value(from[i]);
    } else if (step == 1 && dtype == PA_F16) {
        const uint16_t *from = (const uint16_t *)data + index;
        for (int64_t i = 0; i < count; i++) to[i] = f16_value(from[i]);
    } else {
        for (int64_t i = 0; i < count; i++) to[i] = element(data, dtype, index + i * step);
    }
}

static inline uint16_t bf16_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

static inline uint16_t f16_bits(float value) {
    uint32_t bits, sign;
    memcpy(&bits, &value, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return (uint16_t)(sign | 0x7E00);
    if (bits >= 0x477FF000) return (uint16_t)(sign | 0x7C00); /* 65520 and more round to inf */
    if (bits < 0x38800000) {
        /* Subnormal: adding 0.5 leaves the rounded value in the low bits of the sum. */
        float sum;
        memcpy(&sum, &bits, 4);
        sum += 0.5f;
        memcpy(&bits, &sum, 4);
        return (uint16_t)(sign | (bits - 0x3F000000));
    }
    return (uint16_t)(sign | ((bits - 0x38000000 + 0xFFF + (bits >> 13 & 1)) >> 13));
}

static void store_row(void *data, int64_t dtype, int64_t index, const float *from, int64_t count) {
    if (dtype == PA_F32) {
        memcpy((float *)data + index, from, count * sizeof(float));
    } else if (dtype == PA_BF16) {
        uint16_t *to = (uint16_t *)data + index;
        for (int64_t i = 0; i < count; i++) to[i] = bf16_bits(from[i]);
    } else {
        uint16_t *to = (uint16_t *)data + index;
        for (int64_t i = 0; i < count; i++) to[i] = f16_bits(from[i]);
    }
}

/* Whether an element of a row is NaN or infinite. */
static int row_is_finite(const float *row, int64_t count) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, row + i, 4);
        bad |= (bits & 0x7F800000) == 0x7F800000;
    }
    return !bad;
}
