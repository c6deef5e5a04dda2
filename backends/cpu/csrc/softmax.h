/* The online softmax of VW rows, in place: s becomes p. Returns 2^(m - m'). */
static inline vf softmax_lanes(float *s, int64_t from, int64_t to, float factor, float *top,
                               float *sum) {
    const vf none = v_set1(-INFINITY), scale = v_set1(factor);
    vf best[4] = {none, none, none, none};
    int64_t j = from;
    for (; j + 4 <= to; j += 4)
        UNROLL for (int u = 0; u < 4; u++) best[u] = v_max(best[u], v_load(s + (j + u) * LANES));
    for (; j < to; j++) best[0] = v_max(best[0], v_load(s + j * LANES));
    vf before = v_load(top);
    vf now = v_mul(v_max(v_max(best[0], best[1]), v_max(best[2], best[3])), scale);
    /* Within HEADROOM a maximum is left alone: weights are at most 2^HEADROOM, and nothing decays. */
    now = v_select_lt(v_add(before, v_set1(HEADROOM)), now, now, before);
    v_store(top, now);
    /* A row that has seen nothing yet has maximum -inf; any finite stand-in gives p = 0. */
    const vf base = v_select_lt(none, now, now, v_set1(0.0f));
    const vf minus = v_sub(v_set1(0.0f), base);
    vf total[2] = {v_set1(0.0f), v_set1(0.0f)};
    for (j = from; j + 2 <= to; j += 2)
        UNROLL for (int u = 0; u < 2; u++) {
            float *at = s + (j + u) * LANES;
            vf p = v_exp2(v_fma(v_load(at), scale, minus));
            v_store(at, p);
            total[u] = v_add(total[u], p);
        }
    if (j < to) {
        vf p = v_exp2(v_fma(v_load(s + j * LANES), scale, minus));
        v_store(s + j * LANES, p);
        total[0] = v_add(total[0], p);
    }
    vf decay = v_exp2(v_sub(before, base));
    v_store(sum, v_fma(v_load(sum), decay, v_add(total[0], total[1])));
    return decay;
}
