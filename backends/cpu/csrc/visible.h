/* Which rows a block holds, and which keys each of them sees: the definition. */

/* One block of rows against the keys of one sequence and kv head. */
typedef struct {
    const pa_forward_args *f;
    const pa_sequence *sequence;
    int64_t b, kv_head, group, first, rows; /* rows: how many lanes are real */
} block;

static inline int64_t query_of(const block *w, int64_t lane) { return (w->first + lane) / w->group; }

static inline int64_t head_of(const block *w, int64_t lane) {
    return w->kv_head * w->group + (w->first + lane) % w->group;
}

/* The keys that the window shows to query i: [from, to). */
static inline void window_of(const block *w, int64_t i, int64_t *from, int64_t *to) {
    int64_t keys = w->sequence->seqlen_k, place = i + keys - w->sequence->seqlen_q;
    *from = w->f->left < 0 || place - w->f->left < 0 ? 0 : place - w->f->left;
    *to = w->f->right < 0 || place + w->f->right >= keys ? keys : place + w->f->right + 1;
    if (*to < *from) *to = *from;
}

static inline int64_t bias_at(const int64_t *stride, int64_t b, int64_t head, int64_t i) {
    return b * stride[0] + head * stride[1] + i * stride[2];
}

/* The definition of visible, for the rare places that ask key by key. */
static int is_visible(const block *w, int64_t lane, int64_t key) {
    const pa_forward_args *f = w->f;
    int64_t from, to, i = query_of(w, lane), head = head_of(w, lane);
    window_of(w, i, &from, &to);
    if (key < from || key >= to) return 0;
    if (f->mask && !f->mask[bias_at(f->mask_stride, w->b, head, i) + key * f->mask_stride[3]])
        return 0;
    return !f->bias || element(f->bias, f->bias_dtype, bias_at(f->bias_stride, w->b, head, i)
                                                           + key * f->bias_stride[3])
                           != -INFINITY;
}
