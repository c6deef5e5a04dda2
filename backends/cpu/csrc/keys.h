/* Where the keys of a sequence lie: strided, or on the pages of its block table. */

/* Element offsets of key j of kv head `head` in k and v. */
static inline void key_offsets(const pa_forward_args *f, int64_t b, int64_t head, int64_t j,
                               int64_t *k, int64_t *v) {
    const pa_sequence *s = f->sequences + b;
    if (f->block_table) {
        const int64_t place = s->first_key + j, slot = place % f->page_size;
        const int64_t page = f->block_table[b * f->table_row + place / f->page_size];
        *k = page * f->k_page + slot * f->k_row + head * f->k_head;
        *v = page * f->v_page + slot * f->v_row + head * f->v_head;
    } else {
        *k = s->k + j * f->k_row + head * f->k_head;
        *v = s->v + j * f->v_row + head * f->v_head;
    }
}
