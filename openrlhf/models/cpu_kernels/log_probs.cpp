// What the log-probs of target tokens need of one tile of logits in bfloat16, in one pass over it: a running sum of
// exponentials, and the gradient. Called by log_probs.py. A tile: some rows (target tokens) × some of the vocabulary.

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace {

// `present` of sixteen logits, the others minus infinity.
inline Floats load_some(const Half* from, int64_t present) {
  constexpr Half lowest = 0xff80;
  Half halves[kLanes];
  std::fill_n(halves, kLanes, lowest);
  std::memcpy(halves, from, 2 * std::min(present, kLanes));
  return load_halves(halves);
}

inline Floats load_at(const Half* row, int64_t place, int64_t columns) {
  return columns - place >= kLanes ? load_halves(row + place) : load_some(row + place, columns - place);
}

inline float natural_power(float x) { return std::exp(x); }

inline Floats natural_power(Floats x) { return power_of_2(x * kLog2E); }

}  // namespace

extern "C" {

struct Tile {
  Half* logits;  // (rows, columns), contiguous
  const int64_t* target_ids;
  int64_t rows, columns, first_column;
  int num_threads;
};

static bool has_target(const Tile& tile, int64_t row, int64_t* place) {
  *place = tile.target_ids[row] - tile.first_column;
  return *place >= 0 && *place < tile.columns;
}

// Adds the tile to each row's `sums`, of exp(logit - top), where `tops` are the greatest logits so far.
void log_probs_fold(const Tile* tile, float* tops, float* sums, float* target_logits) {
#pragma omp parallel for schedule(static) num_threads(tile->num_threads)
  for (int64_t row = 0; row < tile->rows; ++row) {
    const Half* logits = tile->logits + row * tile->columns;
    Floats highest = all(tops[row]);
    for (int64_t i = 0; i < tile->columns; i += kLanes) highest = greater(highest, load_at(logits, i, tile->columns));
    const float top = greatest(highest);
    Floats total = {};
    for (int64_t i = 0; i < tile->columns; i += kLanes)
      total += natural_power(load_at(logits, i, tile->columns) - top);
    sums[row] = sums[row] * natural_power(tops[row] - top) + sum_of(total);
    tops[row] = top;
    int64_t place;
    if (has_target(*tile, row, &place)) target_logits[row] = load_some(logits + place, 1)[0];
  }
}

// Puts the gradient of the logits in their place: grads * (1[target] - softmax).
void log_probs_gradient(const Tile* tile, const float* log_sum_exp, const float* grads) {
#pragma omp parallel for schedule(static) num_threads(tile->num_threads)
  for (int64_t row = 0; row < tile->rows; ++row) {
    Half* logits = tile->logits + row * tile->columns;
    int64_t place;
    const bool is_inside = has_target(*tile, row, &place);
    const Floats at_target = is_inside ? load_some(logits + place, 1) : Floats{};
    for (int64_t i = 0; i < tile->columns; i += kLanes) {
      const Floats weights = natural_power(load_at(logits, i, tile->columns) - log_sum_exp[row]);
      Half halves[kLanes];
      store_halves(halves, rounded(weights * -grads[row]));
      std::memcpy(logits + i, halves, 2 * std::min(kLanes, tile->columns - i));
    }
    if (is_inside) {
      const Floats grad = grads[row] - grads[row] * natural_power(at_target - log_sum_exp[row]);
      logits[place] = static_cast<Half>(rounded(grad)[0]);
    }
  }
}

}  // extern "C"
