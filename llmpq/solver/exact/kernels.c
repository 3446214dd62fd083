/* Inner loops of the exact solver; twin_grid.py and twin_items.py say the same in Python, operation for operation. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FAR 1e300
#define METRIC_FLOOR 0.02 /* of the root mean square of a coordinate's slope */
#define PATIENCE 12       /* steps without progress before the step is halved */
#define KEEP 16           /* labels that a new one is compared with */

/* The assignment problem with its first used device chosen: arrays as in figures.py, [kind][device][option] where by cell.
 * ends [6][device]: first stage prefill, decode, bytes, last stage the same; arcs [device][device]: whether one may follow;
 * reach [device][layer]: the largest end of a stage that starts there, monotone in the layer. */
typedef struct {
    int32_t devices, layers, options, kinds, overlap, first, last;
    const int32_t *kind, *reach;
    const double *prefill, *decode, *bytes, *sensitivity, *capacity, *link_prefill, *link_decode, *ends;
    const uint8_t *allowed, *arcs;
    double prefill_slowest, decode_sum, decode_slowest, round_trip, micro_batches, theta, budget, cap_prefill, cap_decode;
} Grid;

/* Weighted costs and least costs [device][boundary]. backward: a stage starts there, all from there on; open: the layer
 * before is on the device, all after it; closing: a stage ends there, all after it; forward: all before a stage. */
typedef struct {
    double *weight, *extra, *arc, *start, *end, *backward, *open, *closing, *forward, *cell, *prefix, *sum;
    int32_t *best, *next, *until, *queue, *device, *option;
    double on_sum, constant;
    void *block;
} Work;

/* 1.0 minus the share of the slowest stage in a round trip whose multipliers add up to `slow`. */
static double work_share(const Grid *g, double slow) {
    if (g->round_trip <= 0.0 || g->decode_slowest <= 0.0) return 1.0;
    double share = 1.0 - slow / g->decode_slowest;
    return share > 0.0 ? share : 0.0;
}

static int make_work(const Grid *g, Work *w) {
    size_t N = g->devices, L = g->layers, B = g->options, K = g->kinds, W = L + 1;
    size_t doubles = K * N * B + L * B + N * N + 2 * N + 4 * N * W + N * L + N * W + W, ints = N * L + 2 * N * W + W + 1 + 2 * L;
    w->block = malloc(sizeof(double) * doubles + sizeof(int32_t) * ints);
    if (!w->block) return 0;
    double *d = w->block;
    w->weight = d; d += K * N * B;
    w->extra = d; d += L * B;
    w->arc = d; d += N * N;
    w->start = d; d += N;
    w->end = d; d += N;
    w->backward = d; d += N * W;
    w->open = d; d += N * W;
    w->closing = d; d += N * W;
    w->forward = d; d += N * W;
    w->cell = d; d += N * L;
    w->prefix = d; d += N * W;
    w->sum = d; d += W;
    int32_t *i = (int32_t *)d;
    w->best = i; i += N * L;
    w->next = i; i += N * W;
    w->until = i; i += N * W;
    w->queue = i; i += W + 1;
    w->device = i; i += L;
    w->option = i;
    return 1;
}

/* Multipliers: prefill, decode and memory of every device, budget. share: of the sums in the round trip. */
static void set_terms(const Grid *g, Work *w, const double *at, double share) {
    int32_t N = g->devices, L = g->layers, B = g->options;
    const double *slow_prefill = at, *slow_decode = at + N, *memory = at + 2 * N;
    double price = at[3 * N], sum = g->decode_sum + g->round_trip * share;
    w->on_sum = sum;
    for (int32_t k = 0; k < g->kinds; k++)
        for (int32_t j = 0; j < N; j++)
            for (int32_t b = 0; b < B; b++) {
                int32_t c = (k * N + j) * B + b;
                w->weight[c] = g->prefill[c] * (1.0 + slow_prefill[j]) + g->decode[c] * (sum + slow_decode[j]) +
                               g->bytes[c] * memory[j];
            }
    for (int32_t x = 0; x < L * B; x++) w->extra[x] = (g->theta + price) * g->sensitivity[x];
    for (int32_t j = 0; j < N; j++) {
        double p = 1.0 + slow_prefill[j], d = sum + slow_decode[j];
        double lp = g->overlap ? 1.0 : p, ld = g->overlap ? sum : d;
        const double *e = g->ends;
        for (int32_t k = 0; k < N; k++)
            w->arc[j * N + k] = g->arcs[j * N + k] ? g->link_prefill[j * N + k] * lp + g->link_decode[j * N + k] * ld : FAR;
        w->start[j] = j == g->first ? p * e[j] + d * e[N + j] + memory[j] * e[2 * N + j] : FAR;
        w->end[j] = p * e[3 * N + j] + d * e[4 * N + j] + memory[j] * e[5 * N + j] + ld * g->link_decode[j * N + g->first];
        if (j < g->last) w->end[j] = FAR;
    }
    w->constant = price > 0.0 ? -price * g->budget : 0.0;
}

static void set_cells(const Grid *g, Work *w) {
    int32_t N = g->devices, L = g->layers, B = g->options, W = L + 1;
    for (int32_t j = 0; j < N; j++) {
        w->prefix[j * W] = 0.0;
        for (int32_t i = 0; i < L; i++) {
            double least = FAR;
            int32_t at = 0;
            for (int32_t b = 0; b < B; b++) {
                if (!g->allowed[(i * N + j) * B + b]) continue;
                double value = w->weight[(g->kind[i] * N + j) * B + b] + w->extra[i * B + b];
                if (value < least) { least = value; at = b; }
            }
            w->cell[j * L + i] = least;
            w->best[j * L + i] = at;
            w->prefix[j * W + i + 1] = w->prefix[j * W + i] + (least < FAR ? least : 0.0);
        }
    }
}

/* Shortest path to the end by sliding minima over the ends of a stage; writes the path. FAR: there is none. */
static double sweep_back(const Grid *g, Work *w, const double *memory) {
    int32_t N = g->devices, L = g->layers, W = L + 1, *queue = w->queue;
    for (int32_t j = N - 1; j >= 0; j--) {
        const double *pre = w->prefix + j * W;
        double use = -memory[j] * g->capacity[j];
        for (int32_t e = 0; e <= L; e++) {
            double least = e == L ? w->end[j] : FAR;
            int32_t to = -1;
            for (int32_t k = j + 1; k < N && e < L; k++) {
                double value = w->arc[j * N + k] + w->backward[k * W + e];
                if (value < least) { least = value; to = k; }
            }
            w->closing[j * W + e] = least;
            w->next[j * W + e] = to;
            w->sum[e] = pre[e] + least;
        }
        int32_t head = 0, tail = 0;
        w->backward[j * W + L] = FAR;
        w->open[j * W] = FAR;
        for (int32_t a = L - 1; a >= 0; a--) {
            while (tail > head && w->sum[queue[tail - 1]] >= w->sum[a + 1]) tail--;
            queue[tail++] = a + 1;
            while (tail > head && queue[head] > g->reach[j * L + a]) head++;
            int found = tail > head && w->sum[queue[head]] < FAR;
            w->until[j * W + a] = found ? queue[head] : -1;
            w->open[j * W + a + 1] = found ? w->sum[queue[head]] - pre[a + 1] : FAR;
            w->backward[j * W + a] = found ? use + (w->sum[queue[head]] - pre[a]) : FAR;
        }
    }
    if (w->backward[g->first * W] >= FAR) return FAR;
    for (int32_t i = 0, j = g->first; j >= 0;) {
        int32_t stop = w->until[j * W + i];
        for (; i < stop; i++) { w->device[i] = j; w->option[i] = w->best[j * L + i]; }
        j = i < L ? w->next[j * W + i] : -1;
    }
    return w->start[g->first] + w->backward[g->first * W];
}

/* Shortest path from the start; overwrites prefix with the cost of everything up to the end of a stage. */
static void sweep_on(const Grid *g, Work *w, const double *memory) {
    int32_t N = g->devices, L = g->layers, W = L + 1, *queue = w->queue;
    for (int32_t j = 0; j < N; j++) {
        double *forward = w->forward + j * W, *closed = w->prefix + j * W, use = -memory[j] * g->capacity[j];
        forward[0] = w->start[j];
        for (int32_t a = 1; a <= L; a++) forward[a] = FAR;
        for (int32_t i = 0; i < j; i++)
            for (int32_t a = 1; a < L; a++) {
                double value = w->prefix[i * W + a] + w->arc[i * N + j];
                if (value < forward[a]) forward[a] = value;
            }
        for (int32_t a = 0; a <= L; a++) w->sum[a] = forward[a] < FAR ? forward[a] - closed[a] : FAR;
        int32_t head = 0, tail = 0;
        closed[0] = FAR;
        for (int32_t e = 1; e <= L; e++) {
            while (tail > head && w->sum[queue[tail - 1]] >= w->sum[e - 1]) tail--;
            queue[tail++] = e - 1;
            while (tail > head && g->reach[j * L + queue[head]] < e) head++;
            closed[e] = tail > head && w->sum[queue[head]] < FAR ? w->sum[queue[head]] + use + closed[e] : FAR;
        }
    }
}

static double grid_value(const Grid *g, Work *w, const double *at, double share) {
    set_terms(g, w, at, share);
    set_cells(g, w);
    double value = sweep_back(g, w, at + 2 * g->devices);
    return value >= FAR ? FAR : value + w->constant;
}

static double share_at(const Grid *g, const double *at) {
    double slow = 0.0;
    for (int32_t j = 0; j < g->devices; j++) slow += at[g->devices + j];
    return work_share(g, slow);
}

/* The Lagrangian bound, every layer by itself; share below 0: what the multipliers of decode leave. FAR: no path. */
double grid_bound(const Grid *g, const double *at, double share) {
    Work w;
    if (!make_work(g, &w)) return -FAR;
    double value = grid_value(g, &w, at, share < 0.0 ? share_at(g, at) : share);
    free(w.block);
    return value;
}

typedef struct { const Grid *g; Work w; } GridOracle;

static double grid_oracle(void *self, const double *at, double *slope) {
    GridOracle *oracle = self;
    const Grid *g = oracle->g;
    Work *w = &oracle->w;
    int32_t N = g->devices, L = g->layers, B = g->options;
    double value = grid_value(g, w, at, share_at(g, at)), trip = 0.0, sens = 0.0;
    for (int32_t x = 0; x < 3 * N + 1; x++) slope[x] = 0.0;
    if (value >= FAR) return FAR;
    int32_t begin = w->device[0], stop = w->device[L - 1];
    for (int32_t i = 0; i < L; i++) {
        int32_t j = w->device[i], c = (g->kind[i] * N + j) * B + w->option[i];
        if (i == 0 || w->device[i - 1] != j) slope[2 * N + j] -= g->capacity[j];
        slope[j] += g->prefill[c];
        slope[N + j] += g->decode[c];
        slope[2 * N + j] += g->bytes[c];
        sens += g->sensitivity[i * B + w->option[i]];
    }
    for (int32_t x = 0; x < 3; x++) {
        slope[x * N + begin] += g->ends[x * N + begin];
        slope[x * N + stop] += g->ends[(3 + x) * N + stop];
    }
    for (int32_t j = 0; j < N; j++) trip += slope[N + j];
    for (int32_t i = 0; i < L; i++) {
        int32_t j = w->device[i], k = i + 1 < L ? w->device[i + 1] : begin;
        if (i + 1 < L && j == k) continue;
        double lp = i + 1 < L ? g->link_prefill[j * N + k] : 0.0, ld = g->link_decode[j * N + k];
        trip += ld;
        if (g->overlap) continue;
        slope[j] += lp;
        slope[N + j] += ld;
    }
    for (int32_t j = 0; j < N && g->round_trip > 0.0; j++) slope[N + j] -= trip / g->micro_batches;
    slope[3 * N] = g->budget < FAR ? sens - g->budget : 0.0;
    return value;
}

/* The nearest point with entries >= 0 that add up to the total. */
static void onto_simplex(double *x, int32_t n, double total) {
    double sorted[n], sum = 0.0, level = 0.0;
    for (int32_t i = 0; i < n; i++) {
        int32_t k = i;
        for (; k > 0 && sorted[k - 1] < x[i]; k--) sorted[k] = sorted[k - 1];
        sorted[k] = x[i];
    }
    for (int32_t i = 0; i < n; i++) {
        sum += sorted[i];
        double mean = (sum - total) / (i + 1);
        if (sorted[i] > mean) level = mean;
    }
    for (int32_t i = 0; i < n; i++) x[i] = total > 0.0 && x[i] > level ? x[i] - level : 0.0;
}

/* The nearest dual feasible multipliers: `count` in all, the last one that of the budget. */
static void project(const Grid *g, double *at, int32_t count) {
    int32_t N = g->devices;
    double slow = 0.0;
    for (int32_t j = 0; j < N; j++) slow += at[N + j] > 0.0 ? at[N + j] : 0.0;
    onto_simplex(at, N, g->prefill_slowest);
    if (g->round_trip <= 0.0 || slow > g->decode_slowest) onto_simplex(at + N, N, g->decode_slowest);
    for (int32_t x = N; x < count; x++) at[x] = at[x] > 0.0 ? at[x] : 0.0;
    if (g->budget >= FAR) at[count - 1] = 0.0;
}

/* Deflected subgradients in a metric of root mean squares, from the best point; `kept` becomes the best multipliers. */
static double ascend(const Grid *g, double (*oracle)(void *, const double *, double *), void *self, int32_t count,
                     double *kept, const double *scale, int32_t steps, double target, double step) {
    double slope[count], direction[count], metric[count], point[count], shortest = step * 1e-3;
    int32_t idle = 0;
    double best = oracle(self, kept, slope);
    for (int32_t x = 0; x < count; x++) { direction[x] = 0.0; metric[x] = 0.01; }
    for (int32_t it = 0; it < steps && best < target && step >= shortest; it++) {
        double gain = 0.0;
        for (int32_t x = 0; x < count; x++) {
            double s = slope[x] / scale[x];
            if (s < 0.0 && kept[x] <= 0.0) s = 0.0;
            direction[x] = 0.9 * direction[x] + 0.1 * s;
            metric[x] = 0.9 * metric[x] + 0.1 * s * s;
            point[x] = direction[x] / (sqrt(metric[x]) + METRIC_FLOOR);
            gain += direction[x] * point[x];
        }
        if (gain <= 1e-16) break;
        double length = step * fabs(best) < target - best ? step * fabs(best) : target - best;
        if (length < 1e-9 * fabs(best)) length = 1e-9 * fabs(best);
        for (int32_t x = 0; x < count; x++) point[x] = kept[x] + length / gain * point[x] / scale[x];
        project(g, point, count);
        double value = oracle(self, point, slope);
        idle = value > best + 0.02 * step * fabs(best) ? 0 : idle + 1;
        if (value > best) {
            best = value;
            memcpy(kept, point, sizeof(double) * count);
        }
        if (idle > PATIENCE) { step *= 0.5; idle = 0; }
    }
    return best;
}

/* The best bound met from these multipliers, which it replaces by its own; stops at the target. */
double ascend_grid(const Grid *g, double *at, const double *scale, int32_t steps, double target, double step) {
    GridOracle oracle = {g, {0}};
    if (!make_work(g, &oracle.w)) return -FAR;
    double best = ascend(g, grid_oracle, &oracle, 3 * g->devices + 1, at, scale, steps, target, step);
    free(oracle.w.block);
    return best;
}

/* The graph of stages: items sorted by start, figures [item][5], item ranges by state, the low ends of the box. */
typedef struct {
    int64_t count;
    const int32_t *start, *stop;
    const double *figures;
    double low_prefill, low_decode;
} Items;

typedef struct { const Grid *g; const Items *items; double *rest; int32_t *via; } ItemOracle;

/* Shortest path over the items at what the multipliers charge. */
static double item_oracle(void *self, const double *at, double *slope) {
    ItemOracle *o = self;
    const Grid *g = o->g;
    const Items *t = o->items;
    int32_t N = g->devices, W = g->layers + 1, end = N * W;
    double share = share_at(g, at), price = at[2 * N], sum = g->decode_sum + g->round_trip * share, trip = 0.0, sens = 0.0;
    for (int32_t s = 0; s < end; s++) o->rest[s] = FAR;
    o->rest[end] = 0.0;
    for (int32_t j = 0; j < N; j++)
        for (int32_t a = 0; a < W; a++) o->via[j * W + a] = j;
    for (int64_t x = t->count - 1; x >= 0; x--) {
        double after = o->rest[t->stop[x]];
        if (after >= FAR) continue;
        const double *f = t->figures + 5 * x;
        int32_t s = t->start[x], j = s / W;
        double over_prefill = f[2] > t->low_prefill ? f[2] - t->low_prefill : 0.0;
        double over_decode = f[3] > t->low_decode ? f[3] - t->low_decode : 0.0;
        double value = after + (f[0] + sum * f[1] + (g->theta + price) * f[4] + at[j] * over_prefill + at[N + j] * over_decode);
        if (value < o->rest[s]) { o->rest[s] = value; o->via[s] = (int32_t)x; }
    }
    for (int32_t x = 0; x < 2 * N + 1; x++) slope[x] = 0.0;
    double value = o->rest[g->first * W];
    if (value >= FAR) return FAR;
    for (int32_t j = 0; j < N; j++) { slope[j] = t->low_prefill; slope[N + j] = t->low_decode; }
    for (int32_t s = g->first * W; s != end;) {
        int32_t x = o->via[s], j = s / W;
        const double *f = t->figures + 5 * (int64_t)x;
        if (f[2] > t->low_prefill) slope[j] = f[2];
        if (f[3] > t->low_decode) slope[N + j] = f[3];
        trip += f[1];
        sens += f[4];
        s = t->stop[x];
    }
    for (int32_t j = 0; j < N && g->round_trip > 0.0; j++) slope[N + j] -= trip / g->micro_batches;
    slope[2 * N] = g->budget < FAR ? sens - g->budget : 0.0;
    double slowest = g->round_trip > 0.0 ? (1.0 - share) * g->decode_slowest : g->decode_slowest;
    double constant = g->prefill_slowest * t->low_prefill + slowest * t->low_decode;
    return value + constant - (price > 0.0 ? price * g->budget : 0.0);
}

/* As ascend_grid, over stages; multipliers: prefill and decode of every device, budget. */
double ascend_items(const Grid *g, const Items *t, double *at, const double *scale, int32_t steps, double target, double step) {
    size_t states = (size_t)g->devices * (g->layers + 1) + 1;
    ItemOracle oracle = {g, t, malloc(sizeof(double) * states), malloc(sizeof(int32_t) * states)};
    double best = ascend(g, item_oracle, &oracle, 2 * g->devices + 1, at, scale, steps, target, step);
    free(oracle.rest);
    free(oracle.via);
    return best;
}

typedef struct { double p, d, m, s, value; uint64_t key; int32_t id; } Label;

static const Label *sorting;

static int by_value(const void *left, const void *right) {
    int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;
    if (sorting[a].value < sorting[b].value) return -1;
    if (sorting[a].value > sorting[b].value) return 1;
    return (a > b) - (a < b);
}

static int close_to(double a, double b) { return fabs(a - b) <= 1e-12 * (fabs(a) + fabs(b)); }

/* Every stage that an assignment below the cutoff may contain, one item per stage and device that follows it.
 *
 * Items: start and stop as device * (layers + 1) + boundary, the end being devices * (layers + 1); figures [5]: prefill and
 * decode with the outgoing link, slowest of each, sensitivity; chain: the last layer's entry in the lists of options that
 * parent links. hash [kind][option]. Returns how many there are, -1 when full. */
int64_t list_stages(const Grid *g, const double *at, double cutoff, const uint64_t *hash, int64_t max_items,
                    int64_t max_labels, int32_t *from, int32_t *to, double *figures, int32_t *chain, int32_t *parent,
                    uint8_t *chosen) {
    const int32_t N = g->devices, L = g->layers, B = g->options, W = L + 1, width = 1 << 15, *kind = g->kind;
    const double *memory = at + 2 * N, *first = g->ends, *last = g->ends + 3 * N, *capacity = g->capacity;
    Work w;
    if (!make_work(g, &w)) return -1;
    grid_value(g, &w, at, share_at(g, at));
    sweep_on(g, &w, memory);
    cutoff -= w.constant;
    int64_t items = 0, labels = 0, full = 0;
    Label *now = malloc(sizeof(Label) * width), *then = malloc(sizeof(Label) * width);
    int32_t *order = malloc(sizeof(int32_t) * width), *table = malloc(sizeof(int32_t) * 4 * width);
    int32_t *front = malloc(sizeof(int32_t) * width);
    for (int32_t j = 0; j < N && !full; j++)
        for (int32_t a = 0; a < L && !full; a++) {
            double base = w.forward[j * W + a] - memory[j] * capacity[j];
            if (w.forward[j * W + a] >= FAR || w.forward[j * W + a] + w.backward[j * W + a] >= cutoff) continue;
            int32_t count = 1;
            now[0].p = a ? 0.0 : first[j];
            now[0].d = a ? 0.0 : first[N + j];
            now[0].m = a ? 0.0 : first[2 * N + j];
            now[0].s = 0.0;
            now[0].value = base;
            now[0].key = 0;
            now[0].id = -1;
            for (int32_t i = a; i < g->reach[j * L + a] && count && !full; i++) {
                int32_t found = 0;
                int32_t size = 16;
                while (size < 2 * count * B) size *= 2;
                if (size > 4 * width) size = 4 * width;
                memset(table, 255, sizeof(int32_t) * size);
                for (int32_t x = 0; x < count && !full; x++)
                    for (int32_t b = 0; b < B; b++) {
                        if (!g->allowed[(i * N + j) * B + b]) continue;
                        int32_t c = (kind[i] * N + j) * B + b;
                        double value = now[x].value + (w.weight[c] + w.extra[i * B + b]);
                        if (value + w.open[j * W + i + 1] >= cutoff) continue;
                        double p = now[x].p + g->prefill[c], d = now[x].d + g->decode[c], m = now[x].m + g->bytes[c];
                        if (p > g->cap_prefill || d > g->cap_decode || m > capacity[j]) continue;
                        double s = now[x].s + g->sensitivity[i * B + b];
                        uint64_t key = now[x].key + hash[kind[i] * B + b];
                        uint64_t slot = (key ^ (key >> 29)) * 0x9E3779B97F4A7C15ull >> 20;
                        int32_t y;
                        for (;; slot++) {
                            y = table[slot & (size - 1)];
                            if (y < 0) break;
                            if (then[y].key == key && then[y].m == m && close_to(then[y].p, p) && close_to(then[y].d, d)) break;
                        }
                        if (y >= 0 && then[y].s <= s) continue;
                        if (y < 0) {
                            if (found == width) { full = 1; break; }
                            y = found++;
                            table[slot & (size - 1)] = y;
                            then[y].p = p; then[y].d = d; then[y].m = m; then[y].key = key;
                        }
                        then[y].s = s;
                        then[y].value = value;
                        then[y].id = x * B + b;
                    }
                for (int32_t x = 0; x < found; x++) order[x] = x;
                sorting = then;
                qsort(order, found, sizeof(int32_t), by_value);
                int32_t kept = 0;
                for (int32_t x = 0; x < found && !full; x++) {
                    const Label *new = then + order[x];
                    int dominated = 0;
                    for (int32_t y = 0; y < kept && y < KEEP && !dominated; y++) {
                        const Label *old = then + front[y];
                        dominated = old->p <= new->p && old->d <= new->d && old->m <= new->m && old->s <= new->s;
                    }
                    if (dominated) continue;
                    if (labels >= max_labels) { full = 1; break; }
                    parent[labels] = now[new->id / B].id;
                    chosen[labels] = (uint8_t)(new->id % B);
                    front[kept++] = order[x];
                    then[order[x]].id = (int32_t)labels++;
                }
                for (int32_t x = 0; x < kept; x++) now[x] = then[front[x]];
                count = kept;
                int32_t e = i + 1, shown = 0;
                if (w.closing[j * W + e] >= FAR) continue;
                for (int32_t x = 0; x < count && !full; x++) {
                    double p = now[x].p, d = now[x].d, m = now[x].m, s = now[x].s;
                    if (e == L) { p += last[j]; d += last[N + j]; m += last[2 * N + j]; }
                    if (m > capacity[j]) continue;
                    double value = now[x].value + memory[j] * (capacity[j] - m);
                    if (value + w.closing[j * W + e] >= cutoff) continue;
                    int dominated = 0;
                    for (int32_t y = 0; y < shown && !dominated; y++) {
                        const Label *old = now + order[y];
                        dominated = old->p <= now[x].p && old->d <= now[x].d && old->s <= s;
                    }
                    if (dominated) continue;
                    order[shown++] = x;
                    for (int32_t k = e == L ? N : j + 1; k < (e == L ? N + 1 : N); k++) {
                        double rest = k == N ? w.end[j] : w.arc[j * N + k] + w.backward[k * W + e];
                        double lp = k == N ? 0.0 : g->link_prefill[j * N + k], ld = g->link_decode[j * N + (k == N ? g->first : k)];
                        double xp = g->overlap ? (p > lp ? p : lp) : p + lp, xd = g->overlap ? (d > ld ? d : ld) : d + ld;
                        if (rest >= FAR || value + rest >= cutoff || xp > g->cap_prefill || xd > g->cap_decode) continue;
                        if (items >= max_items) { full = 1; break; }
                        from[items] = j * W + a;
                        to[items] = k == N ? N * W : k * W + e;
                        double *row = figures + 5 * items;
                        row[0] = p + lp; row[1] = d + ld; row[2] = xp; row[3] = xd; row[4] = s;
                        chain[items++] = now[x].id;
                    }
                }
            }
        }
    free(now); free(then); free(order); free(table); free(front); free(w.block);
    return full ? -1 : items;
}

typedef struct { double work, slow, sens, key; int32_t item, parent, next; } Path;

static const Path *ranking;

static int by_rank(const void *left, const void *right) {
    int32_t a = *(const int32_t *)left, b = *(const int32_t *)right;
    const Path *x = ranking + a, *y = ranking + b;
    if (x->key != y->key) return x->key < y->key ? -1 : 1;
    if (x->slow != y->slow) return x->slow < y->slow ? -1 : 1;
    if (x->sens != y->sens) return x->sens < y->sens ? -1 : 1;
    return (a > b) - (a < b);
}

/* The path of least max(work, slow) with sensitivity within the budget, over items sorted by the state they start from.
 *
 * rows [4][item]: work, slow, sensitivity, and their mix with what must follow, by which the items of a state are sorted;
 * rest [3][state]: least work, slow and sensitivity from a state to the end.
 * numbers = {cutoff, share of work in the mix, price of sensitivity in it, budget, bucket, work at the start, slow at the
 * start}: two paths to a state count as one where they differ by less than a bucket. single: work alone matters.
 * source: the state to start from; first [state + 1]: items by state. Writes the items of the best path, last first, and
 * answer = {value, least value dropped, paths}; returns the number of items of the path, 0 when there is none. */
int32_t best_path(int32_t states, int32_t single, int32_t source, const double *numbers, const int64_t *first,
                  const int32_t *to, const double *rows, int64_t items, const double *rest, int32_t max_paths,
                  int32_t *path, double *answer) {
    const double cutoff = numbers[0], share = numbers[1], price = numbers[2], budget = numbers[3], bucket = numbers[4];
    int32_t count = 0, best = -1, room = 1024, room_front = 1024;
    double dropped = FAR, least = cutoff;
    Path *paths = malloc(sizeof(Path) * max_paths);
    int32_t *head = malloc(sizeof(int32_t) * (states + 1)), *order = malloc(sizeof(int32_t) * room);
    int32_t *front = malloc(sizeof(int32_t) * room_front);
    for (int32_t s = 0; s <= states; s++) head[s] = -1;
    for (int32_t s = 0; s < states; s++) {
        if (s == source && count < max_paths) {
            Path *new = paths + count;
            new->work = numbers[5]; new->slow = numbers[6]; new->sens = 0.0; new->item = -1; new->parent = -1;
            new->key = bucket > 0.0 ? floor(new->work / bucket) : new->work;
            new->next = head[s];
            head[s] = count++;
        }
        int32_t here = 0;
        for (int32_t x = head[s]; x >= 0; x = paths[x].next) {
            if (here == room) order = realloc(order, sizeof(int32_t) * (room *= 2));
            order[here++] = x;
        }
        if (!here) continue;
        ranking = paths;
        qsort(order, here, sizeof(int32_t), by_rank);
        int32_t kept = 0;
        double lowest = FAR;
        for (int32_t y = 0; y < here; y++) {
            const Path *new = paths + order[y];
            int dominated = budget >= FAR && (single ? kept > 0 : lowest <= new->slow + bucket);
            for (int32_t z = kept - 1; z >= 0 && !dominated && budget < FAR; z--) {
                const Path *old = paths + front[z];
                dominated = old->slow <= new->slow + bucket && old->sens <= new->sens;
            }
            if (dominated) continue;
            if (new->slow < lowest) lowest = new->slow;
            if (kept == room_front) front = realloc(front, sizeof(int32_t) * (room_front *= 2));
            front[kept++] = order[y];
        }
        for (int32_t y = 0; y < kept; y++) {
            int32_t old = front[y];
            double mixed = share * paths[old].work + (1.0 - share) * paths[old].slow + price * paths[old].sens;
            for (int64_t t = first[s]; t < first[s + 1]; t++) {
                double mix = mixed + rows[3 * items + t];
                if (mix >= least) break;
                double work = paths[old].work + rows[t], slow = paths[old].slow + rows[items + t];
                double sens = paths[old].sens + rows[2 * items + t];
                int32_t end = to[t];
                if (work + rest[end] >= least) continue;
                if (!single && slow + rest[states + 1 + end] >= least) continue;
                if (sens + rest[2 * (states + 1) + end] > budget) continue;
                if (count >= max_paths) {
                    if (mix < dropped) dropped = mix;
                    continue;
                }
                Path *new = paths + count;
                new->work = work; new->slow = slow; new->sens = sens; new->item = (int32_t)t; new->parent = old;
                new->key = bucket > 0.0 ? floor(work / bucket) : work;
                if (end == states) {
                    least = single || work > slow ? work : slow;
                    best = count++;
                    continue;
                }
                new->next = head[end];
                head[end] = count++;
            }
        }
    }
    int32_t length = 0;
    for (int32_t x = best; x >= 0 && paths[x].item >= 0; x = paths[x].parent) path[length++] = paths[x].item;
    answer[0] = least;
    answer[1] = dropped;
    answer[2] = count;
    free(paths); free(head); free(order); free(front);
    return length;
}
