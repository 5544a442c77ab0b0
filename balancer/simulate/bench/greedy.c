/* Yardstick of the expert placement bench: how long a plain greedy planner takes when nothing is in its way.
 *
 *     cc -O3 -o greedy greedy.c && ./greedy LOADS
 *
 * LOADS is four 32-bit integers (layers, experts, slots, GPUs) and the loads as 64-bit floats, in the machine's byte order.
 * Largest load per replica gets the next replica, then longest first into the lightest GPU with room, heaps throughout; no
 * placement is written down. Prints the best of 20 times for all layers in ms, and the mean imbalance over layers. The
 * bench compiles it with -O3 and runs it on its own inputs, in turn with the planners. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
typedef struct { double key; int id, n; } Node;
static void down(Node *h, int n, int i) { for (;;) { int c = 2 * i + 1; if (c >= n) return; if (c + 1 < n && h[c + 1].key > h[c].key) c++; if (h[i].key >= h[c].key) return; Node t = h[i]; h[i] = h[c]; h[c] = t; i = c; } }
static int cmp(const void *a, const void *b) { double x = ((const Node *)a)->key, y = ((const Node *)b)->key; return x < y ? 1 : x > y ? -1 : 0; }
int main(int argc, char **argv) {
  int L, E, P, G; (void)argc; FILE *f = fopen(argv[1], "rb"); int head[4]; if (!f || fread(head, 4, 4, f) != 4) return 1; L = head[0]; E = head[1]; P = head[2]; G = head[3];
  double *w = malloc(sizeof(double) * L * E); if (fread(w, 8, (size_t)L * E, f) != (size_t)L * E) return 1;
  Node *h = malloc(sizeof(Node) * (E + P)), *r = malloc(sizeof(Node) * P), *b = malloc(sizeof(Node) * G); int *cnt = malloc(4 * E); double best = 1e9, imb = 0;
  for (int rep = 0; rep < 20; rep++) { struct timespec a, z; clock_gettime(CLOCK_MONOTONIC, &a); imb = 0;
    for (int l = 0; l < L; l++) { double *v = w + (size_t)l * E, total = 0, top = 0;
      for (int e = 0; e < E; e++) { h[e] = (Node){v[e], e, 1}; cnt[e] = 1; total += v[e]; } for (int i = E / 2; i >= 0; i--) down(h, E, i);
      for (int k = E; k < P; k++) { h[0].n++; cnt[h[0].id]++; h[0].key = v[h[0].id] / h[0].n; down(h, E, 0); }
      int m = 0; for (int e = 0; e < E; e++) for (int k = 0; k < cnt[e]; k++) r[m++] = (Node){v[e] / cnt[e], e, 0}; qsort(r, P, sizeof(Node), cmp);
      for (int g = 0; g < G; g++) b[g] = (Node){0, g, P / G}; int n = G;
      for (int i = 0; i < P; i++) { b[0].key -= r[i].key; b[0].n--; if (-b[0].key > top) top = -b[0].key; if (!b[0].n) { b[0] = b[--n]; } down(b, n, 0); }
      imb += top * G / total / L; }
    clock_gettime(CLOCK_MONOTONIC, &z); double ms = (z.tv_sec - a.tv_sec) * 1e3 + (z.tv_nsec - a.tv_nsec) / 1e6; if (ms < best) best = ms; }
  printf("%.4f %.6f\n", best, imb); return 0; }
