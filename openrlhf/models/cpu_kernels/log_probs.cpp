// One tile of logits in bfloat16 or float32, some rows (target tokens) × some of the vocabulary: its part of the log-sum-exp, of
// the entropy and of the search for the likeliest token; and its gradient. Called by log_probs.py.

#include <algorithm>
#include <cmath>
#include <limits>

#include "vectors.h"

namespace {

// `present` of kLanes logits, the others minus infinity.
template <typename Number>
Floats load_some(const Number* from, int64_t present) {
  Number numbers[kLanes];
  store(numbers, numbers_of<Number>(all(-std::numeric_limits<float>::infinity())));
  std::memcpy(numbers, from, sizeof(Number) * std::min(present, kLanes));
  return load(numbers);
}

template <typename Number>
Floats load_at(const Number* row, int64_t place, int64_t columns) {
  return columns - place >= kLanes ? load(row + place) : load_some(row + place, columns - place);
}

inline float natural_power(float x) { return std::exp(x); }

inline Floats natural_power(Floats x) { return power_of_2(x * kLog2E); }

template <typename Number>
struct Tile {
  Number* logits;  // (rows, columns), contiguous
  const int64_t* target_ids;
  int64_t rows, columns, first_column;
  int num_threads;
};

template <typename Number>
bool has_target(const Tile<Number>& tile, int64_t row, int64_t* place) {
  *place = tile.target_ids[row] - tile.first_column;
  return *place >= 0 && *place < tile.columns;
}

// What the tiles so far say about each row. Columns are folded in ascending order.
struct Running {
  float* tops;            // the greatest logit
  float* sums;            // of exp(logit - top)
  float* moments;         // of exp(logit - top) * (logit - top), for the entropy; null where nobody asks for it
  float* target_logits;
  bool* is_likeliest;     // whether the target has the greatest logit, and of equal ones the lowest id
};

// Whether one of the first `count` logits equals `top`, which is above minus infinity.
template <typename Number>
bool stands_before(const Number* logits, int64_t count, float top) {
  Ints is_equal = {};
  for (int64_t i = 0; i < count; i += kLanes) is_equal |= load_at(logits, i, count) == all(top);
  for (int64_t lane = 0; lane < kLanes; ++lane)
    if (is_equal[lane]) return true;
  return false;
}

// Takes the target of a row into account, whose greatest logit rises to `top` in this tile, or stays.
template <typename Number>
void fold_target(const Tile<Number>& tile, const Running& running, int64_t row, float top) {
  const Number* logits = tile.logits + row * tile.columns;
  const bool rises = top > running.tops[row];
  int64_t place;
  const bool is_inside = has_target(tile, row, &place);
  if (is_inside) running.target_logits[row] = load_some(logits + place, 1)[0];
  if (rises) {
    const bool is_greatest = is_inside && running.target_logits[row] == top;
    running.is_likeliest[row] = is_greatest && !stands_before(logits, place, top);
  }
}

// Takes the exponentials of a row into its sum, and into its moment if there is one.
//
// Sums and moments are relative to the greatest logit so far. Where that rises from t to t', with c = exp(t - t'):
//   sum of exp(x - t')            = c * sum
//   sum of exp(x - t') * (x - t') = c * (moment + sum * (t - t'))
template <bool with_moment, typename Number>
void fold_exponentials(const Number* logits, int64_t columns, float top, const Running& running, int64_t row) {
  const Floats lowest = all(-126.0f / kLog2E);  // below it `natural_power` stays as it is; missing lanes are -infinity
  Floats total = {}, moment = {};
  for (int64_t i = 0; i < columns; i += kLanes) {
    const Floats difference = load_at(logits, i, columns) - top;
    const Floats weight = natural_power(difference);
    total += weight;
    if (with_moment) moment += weight * (difference < lowest ? lowest : difference);
  }
  const float rise = running.tops[row] - top, correction = natural_power(rise);
  if (with_moment) {
    const float earlier = running.sums[row] > 0 ? running.moments[row] + running.sums[row] * rise : 0.0f;
    running.moments[row] = earlier * correction + sum_of(moment);
  }
  running.sums[row] = running.sums[row] * correction + sum_of(total);
}

template <typename Number>
void fold(const Tile<Number>& tile, const Running& running) {
#pragma omp parallel for schedule(static) num_threads(tile.num_threads)
  for (int64_t row = 0; row < tile.rows; ++row) {
    const Number* logits = tile.logits + row * tile.columns;
    Floats highest = all(running.tops[row]);
    for (int64_t i = 0; i < tile.columns; i += kLanes) highest = greater(highest, load_at(logits, i, tile.columns));
    const float top = greatest(highest);
    fold_target(tile, running, row, top);
    if (running.moments)
      fold_exponentials<true>(logits, tile.columns, top, running, row);
    else
      fold_exponentials<false>(logits, tile.columns, top, running, row);
    running.tops[row] = top;
  }
}

template <typename Number>
void put_gradient(const Tile<Number>& tile, const float* log_sum_exp, const float* grads) {
#pragma omp parallel for schedule(static) num_threads(tile.num_threads)
  for (int64_t row = 0; row < tile.rows; ++row) {
    Number* logits = tile.logits + row * tile.columns;
    int64_t place;
    const bool is_inside = has_target(tile, row, &place);
    const Floats at_target = is_inside ? load_some(logits + place, 1) : Floats{};
    for (int64_t i = 0; i < tile.columns; i += kLanes) {
      const Floats weights = natural_power(load_at(logits, i, tile.columns) - log_sum_exp[row]);
      Number numbers[kLanes];
      store(numbers, numbers_of<Number>(weights * -grads[row]));
      std::memcpy(logits + i, numbers, sizeof(Number) * std::min(kLanes, tile.columns - i));
    }
    if (is_inside) {
      const Floats grad = grads[row] - grads[row] * natural_power(at_target - log_sum_exp[row]);
      logits[place] = numbers_of<Number>(grad)[0];
    }
  }
}

}  // namespace

extern "C" {

// Adds the tile to what is known of each row, in two passes over its logits: the greatest, then the exponentials.
void log_probs_fold_in_bfloat16(const Tile<Half>* tile, const Running* running) { fold(*tile, *running); }
void log_probs_fold_in_float32(const Tile<float>* tile, const Running* running) { fold(*tile, *running); }

// Puts the gradient of the logits in their place: grads * (1[target] - softmax).
void log_probs_gradient_in_bfloat16(const Tile<Half>* tile, const float* log_sum_exp, const float* grads) {
  put_gradient(*tile, log_sum_exp, grads);
}
void log_probs_gradient_in_float32(const Tile<float>* tile, const float* log_sum_exp, const float* grads) {
  put_gradient(*tile, log_sum_exp, grads);
}

}  // extern "C"
