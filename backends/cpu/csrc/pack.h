/* Rows of float32 as the panels that gemm.h multiplies. */

/* Rows of queries side by side in one block, in vectors: the lanes of every score. */
#define LANES (LANE_VECTORS * VW)
#define PANEL (2 * VW)

/* A row as entry `row` of panels [columns / PANEL][rows][PANEL]; row holds whole panels. */
static void spread(float *panels, int64_t rows, int64_t row, const float *from, int64_t columns) {
    for (int64_t p = 0; p < columns; p += PANEL) {
        float *to = panels + p * rows + row * PANEL;
        v_store(to, v_load(from + p));
        v_store(to + VW, v_load(from + p + VW));
    }
}
