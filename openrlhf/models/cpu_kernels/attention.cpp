// Causal attention of packed samples in bfloat16, forward and backward, for CPUs whose matrix units take bfloat16.
//
// The scores of one block of queries and one block of keys stay in the cache: their products, softmax and gradients
// are in float32, what goes into the next product is rounded to bfloat16. The forward pass is the softmax that is
// corrected as it goes (Milakov and Gimelshein, 2018; Dao et al., 2022); the backward pass computes the scores again.
// Products are torch's `brgemm` (oneDNN). Its right-hand side holds pairs of rows side by side: `Pairs` below.
//
// A task is one query head of one sample; samples never meet. Sizes: T tokens of the pack, L of a sample, D head size.
// Called by attention.py.

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "vectors.h"

namespace {

using Pairs = uint32_t;  // two bfloat16 of one column: the upper row's in the low half

constexpr int64_t kBlock = 64;     // queries and keys of a block
constexpr int64_t kTailStep = 16;  // the last block is rounded up to this, so that few kinds of products are made

struct Rows {  // of one head: token t begins at data + t * step
  const Half* data;
  int64_t step;
  const Half* at(int64_t token) const { return data + token * step; }
};

int64_t rounded_up(int64_t count) { return (count + kTailStep - 1) / kTailStep * kTailStep; }

struct Block {  // tokens of a sample, from `first` on; products are made of `padded` of them
  int64_t first, count, padded;

  Block(int64_t first, int64_t length)
      : first(first), count(std::min(kBlock, length - first)), padded(rounded_up(count)) {}
};

// left (rows, inner) times right (inner, columns) → result (rows, columns) float32, added to it where `add`.
inline void product(int64_t rows, int64_t columns, int64_t inner, const Half* left, int64_t left_step,
                    const Pairs* right, float* result, int64_t result_step, bool add) {
  at::native::cpublas::brgemm(rows, columns, inner, left_step, columns, result_step, add,
                              reinterpret_cast<const at::BFloat16*>(left),
                              reinterpret_cast<const at::BFloat16*>(right), result, true);
}

// --- packing ---------------------------------------------------------------------------------------------------------

// A block's rows of D as the right-hand side (padded, D) of a product; rows that are missing are zero.
void pair_rows(const Rows& rows, const Block& block, int64_t size, Pairs* pairs) {
  for (int64_t row = 0; row < block.padded; row += 2, pairs += size) {
    if (row + 1 < block.count) {
      const Half *upper = rows.at(block.first + row), *lower = rows.at(block.first + row + 1);
      for (int64_t i = 0; i < size; ++i) pairs[i] = upper[i] | static_cast<Pairs>(lower[i]) << 16;
    } else if (row < block.count) {
      const Half* upper = rows.at(block.first + row);
      for (int64_t i = 0; i < size; ++i) pairs[i] = upper[i];
    } else {
      std::fill_n(pairs, size, 0u);
    }
  }
}

template <int distance>
inline void exchange(Words (&rows)[kLanes]) {  // one of the four steps of a transposition
  const Ints is_upper = (kLane & distance) != 0;  // -1 where true
  const Ints lower = is_upper ? kLane - distance + 16 : kLane, upper = is_upper ? kLane + 16 : kLane + distance;
  for (int i = 0; i < kLanes; ++i) {
    if (i & distance) continue;
    const Words a = rows[i], b = rows[i + distance];
    rows[i] = __builtin_shuffle(a, b, lower);
    rows[i + distance] = __builtin_shuffle(a, b, upper);
  }
}

// The same rows transposed, as the right-hand side (D, padded) of a product.
void pair_columns(const Rows& rows, const Block& block, int64_t size, Pairs* pairs) {
  for (int64_t row = 0; row < block.padded; row += kLanes) {
    for (int64_t i = 0; i < size / 2; i += kLanes) {
      Words tile[kLanes] = {};
      const int64_t present = std::min(kLanes, block.count - row), wide = std::min(kLanes, size / 2 - i);
      for (int64_t j = 0; j < present; ++j) std::memcpy(&tile[j], rows.at(block.first + row + j) + 2 * i, 4 * wide);
      exchange<1>(tile);
      exchange<2>(tile);
      exchange<4>(tile);
      exchange<8>(tile);
      for (int64_t j = 0; j < wide; ++j) std::memcpy(&pairs[(i + j) * block.padded + row], &tile[j], sizeof(Words));
    }
  }
}

// Pairs (inner, columns) as plain rows (inner, columns).
void unpair(const Pairs* pairs, int64_t inner, int64_t columns, Half* rows) {
  for (int64_t row = 0; row < inner; row += 2, pairs += columns, rows += 2 * columns) {
    for (int64_t i = 0; i < columns; ++i) rows[i] = static_cast<Half>(pairs[i]);
    for (int64_t i = 0; i < columns; ++i) rows[columns + i] = static_cast<Half>(pairs[i] >> 16);
  }
}

// Rows of a block as the left-hand side of a product: where they stand, or copied where the block is not full.
Rows left_rows(const Rows& rows, const Block& block, int64_t size, Half* copy) {
  if (block.count == block.padded) return {rows.at(block.first), rows.step};
  std::fill_n(copy + block.count * size, (block.padded - block.count) * size, static_cast<Half>(0));
  for (int64_t row = 0; row < block.count; ++row) std::memcpy(copy + row * size, rows.at(block.first + row), 2 * size);
  return {copy, size};
}

// --- forward ---------------------------------------------------------------------------------------------------------

struct ForwardRoom {  // of one thread
  Buffer<Pairs> keys_across, values;
  Buffer<Half> query_copy, weights;
  Buffer<float> scores, output;
  float tops[kBlock], sums[kBlock];  // of each query: the greatest score so far, and its weights' sum relative to that

  ForwardRoom(int64_t longest, int64_t size)
      : keys_across(rounded_up(longest) * size / 2),
        values(keys_across.size()),
        query_copy(kBlock * size),
        weights(kBlock * kBlock),
        scores(kBlock * kBlock),
        output(kBlock * size) {}
};

void multiply(float* row, int64_t size, float factor) {
  for (int64_t i = 0; i < size; i += kLanes) store(row + i, load(row + i) * factor);
}

// One row of scores: its weights, relative to `top`, the greatest score so far, which only rises.
// The first `seen` of `columns` tokens are those that the query sees. Returns what earlier weights are to be taken by.
float weigh(const float* scores, int64_t seen, int64_t columns, float scale, float& top, float& sum, Half* weights) {
  Floats greatest_of_lanes = all(top);
  for (int64_t i = 0; i < columns; i += kLanes) {
    const Floats score = load(scores + i) * scale;
    greatest_of_lanes = greater(greatest_of_lanes, kLane < static_cast<int32_t>(seen - i) ? score : all(top));
  }
  const float new_top = greatest(greatest_of_lanes);
  Floats total = {};
  for (int64_t i = 0; i < columns; i += kLanes) {
    const Floats weight = power_of_2(load(scores + i) * scale - new_top);
    const Floats weight_of_seen = kLane < static_cast<int32_t>(seen - i) ? weight : Floats{};
    total += weight_of_seen;
    store_halves(weights + i, rounded(weight_of_seen));
  }
  const float correction = new_top == top ? 1.0f : std::exp2(top - new_top);
  sum = sum * correction + sum_of(total);
  top = new_top;
  return correction;
}

// Scores of a block of queries with the keys from `seen` on, and what these add to the block's output.
void attend_block(const Rows& queries, const Block& block, int64_t seen, int64_t size, float scale,
                  ForwardRoom& room) {
  const bool is_diagonal = seen == block.first, is_first = seen == 0;
  const int64_t columns = is_diagonal ? block.padded : kBlock;
  product(block.padded, columns, size, queries.data, queries.step, room.keys_across.data() + seen * size / 2,
          room.scores.data(), columns, false);
  for (int64_t row = 0; row < block.count; ++row) {
    const float correction =
        weigh(room.scores.data() + row * columns, is_diagonal ? row + 1 : kBlock, columns, scale, room.tops[row],
              room.sums[row], room.weights.data() + row * columns);
    if (!is_first && correction != 1.0f) multiply(room.output.data() + row * size, size, correction);
  }
  product(block.padded, size, columns, room.weights.data(), columns, room.values.data() + seen * size / 2,
          room.output.data(), size, !is_first);
}

void write_output(const Block& block, int64_t size, const ForwardRoom& room, Half* output, int64_t output_step,
                  float* log_sums) {
  for (int64_t row = 0; row < block.count; ++row) {
    Half* into = output + (block.first + row) * output_step;
    const float factor = 1.0f / room.sums[row];
    for (int64_t i = 0; i < size; i += kLanes)
      store_halves(into + i, rounded(load(room.output.data() + row * size + i) * factor));
    log_sums[block.first + row] = room.tops[row] + std::log2(room.sums[row]);
  }
}

// Args: scale: of the scores, for powers of 2.
void forward_head(const Rows& query, const Rows& key, const Rows& value, Half* output, int64_t output_step,
                  float* log_sums, int64_t length, int64_t size, float scale, ForwardRoom& room) {
  for (int64_t first = 0; first < length; first += kBlock) {
    pair_columns(key, Block(first, length), size, room.keys_across.data() + first * size / 2);
    pair_rows(value, Block(first, length), size, room.values.data() + first * size / 2);
  }
  for (int64_t first = 0; first < length; first += kBlock) {
    const Block block(first, length);
    const Rows queries = left_rows(query, block, size, room.query_copy.data());
    std::fill_n(room.tops, kBlock, -std::numeric_limits<float>::infinity());
    std::fill_n(room.sums, kBlock, 0.0f);
    for (int64_t seen = 0; seen <= first; seen += kBlock) attend_block(queries, block, seen, size, scale, room);
    write_output(block, size, room, output, output_step, log_sums);
  }
}

// --- backward --------------------------------------------------------------------------------------------------------

struct BackwardRoom {  // of one thread; "across": transposed
  Buffer<Pairs> queries, queries_across, grads, grads_across, keys_across, score_grad_pairs;
  Buffer<Half> keys_left, key_copy, value_copy, weights, score_grads;
  Buffer<float> scores, weight_grads, query_grad_across, key_block, value_block, dots, log_sums;

  BackwardRoom(int64_t longest, int64_t size)
      : queries(rounded_up(longest) * size / 2),
        queries_across(queries.size()),
        grads(queries.size()),
        grads_across(queries.size()),
        keys_across(kBlock * size / 2),
        score_grad_pairs(kBlock * kBlock / 2),
        keys_left(kBlock * size),
        key_copy(kBlock * size),
        value_copy(kBlock * size),
        weights(kBlock * kBlock),
        score_grads(kBlock * kBlock),
        scores(kBlock * kBlock),
        weight_grads(kBlock * kBlock),
        query_grad_across(rounded_up(longest) * size),
        key_block(kBlock * size),
        value_block(kBlock * size),
        dots(rounded_up(longest)),
        log_sums(rounded_up(longest)) {}
};

// Packs a sample's queries and output gradients; `dots` is output · its gradient of each token.
void pack_queries(const Rows& query, const Rows& output, const Rows& grad, const float* log_sums, int64_t length,
                  int64_t size, BackwardRoom& room) {
  for (int64_t first = 0; first < length; first += kBlock) {
    const Block block(first, length);
    const int64_t offset = first * size / 2;
    pair_rows(query, block, size, room.queries.data() + offset);
    pair_columns(query, block, size, room.queries_across.data() + offset);
    pair_rows(grad, block, size, room.grads.data() + offset);
    pair_columns(grad, block, size, room.grads_across.data() + offset);
  }
  for (int64_t token = 0; token < length; ++token) {
    const Half *a = output.at(token), *b = grad.at(token);
    Floats dot = {};
    for (int64_t i = 0; i < size; i += kLanes) dot += load_halves(a + i) * load_halves(b + i);
    room.dots[token] = sum_of(dot);
    room.log_sums[token] = log_sums[token];
  }
  const int64_t padded = rounded_up(length);
  std::fill(room.dots.begin() + length, room.dots.begin() + padded, 0.0f);
  // What no token stands behind gets no weight.
  std::fill(room.log_sums.begin() + length, room.log_sums.begin() + padded, std::numeric_limits<float>::infinity());
}

// One row of scores and gradients of weights (keys × queries): the weights and the gradients of the scores.
// Queries before `first_seen` do not see the key. Returns the latter as they are stored.
inline Words score_gradient(const float* scores, const float* weight_grads, const float* log_sums, const float* dots,
                            float scale, int64_t first_seen, Half* weights, Half* score_grads) {
  const Ints is_seen = kLane >= static_cast<int32_t>(first_seen);
  const Floats weight = is_seen ? power_of_2(load(scores) * scale - load(log_sums)) : Floats{};
  const Floats grad = is_seen ? weight * (load(weight_grads) - load(dots)) : Floats{};
  const Words halves = rounded(grad);
  store_halves(weights, rounded(weight));
  store_halves(score_grads, halves);
  return halves;
}

// The same for a block; the gradients of the scores also as pairs of keys.
void score_gradients(int64_t num_keys, int64_t columns, const float* log_sums, const float* dots, float scale,
                     bool is_diagonal, BackwardRoom& room) {
  for (int64_t row = 0; row < num_keys; row += 2) {
    for (int64_t i = 0; i < columns; i += kLanes) {
      Words halves[2];
      for (int64_t which : {0, 1}) {
        const int64_t place = (row + which) * columns + i;
        const int64_t first_seen = is_diagonal ? row + which - i : 0;
        halves[which] =
            score_gradient(room.scores.data() + place, room.weight_grads.data() + place, log_sums + i, dots + i,
                           scale, first_seen, room.weights.data() + place, room.score_grads.data() + place);
      }
      Pairs* pairs = room.score_grad_pairs.data() + row / 2 * columns + i;
      *reinterpret_cast<Words*>(pairs) = halves[0] | halves[1] << 16;
    }
  }
}

void write_query_gradients(int64_t length, int64_t size, float scale, const BackwardRoom& room, Half* query_grad,
                           int64_t step) {
  for (int64_t first = 0; first < length; first += kBlock) {
    const Block block(first, length);
    for (int64_t row = 0; row < block.count; ++row) {
      const float* across = room.query_grad_across.data() + first * size + row;
      for (int64_t i = 0; i < size; i += kLanes) {
        Floats values;
        for (int64_t lane = 0; lane < kLanes; ++lane) values[lane] = across[(i + lane) * block.padded];
        store_halves(query_grad + (first + row) * step + i, rounded(values * scale));
      }
    }
  }
}

// What the queries from `asking` on give to the gradients of a block of keys and values, and these to theirs.
void backward_block(const Rows& keys, const Rows& values, const Block& block, int64_t asking, int64_t length,
                    int64_t size, float score_scale, BackwardRoom& room) {
  const int64_t rows = block.padded, columns = Block(asking, length).padded, offset = asking * size / 2;
  const bool is_diagonal = asking == block.first;
  product(rows, columns, size, keys.data, keys.step, room.queries_across.data() + offset, room.scores.data(), columns,
          false);
  product(rows, columns, size, values.data, values.step, room.grads_across.data() + offset, room.weight_grads.data(),
          columns, false);
  score_gradients(rows, columns, room.log_sums.data() + asking, room.dots.data() + asking, score_scale, is_diagonal,
                  room);
  product(rows, size, columns, room.weights.data(), columns, room.grads.data() + offset, room.value_block.data(), size,
          !is_diagonal);
  product(rows, size, columns, room.score_grads.data(), columns, room.queries.data() + offset, room.key_block.data(),
          size, !is_diagonal);
  product(size, columns, rows, room.keys_left.data(), rows, room.score_grad_pairs.data(),
          room.query_grad_across.data() + asking * size, columns, block.first > 0);
}

// Gradients of query (bfloat16), key and value (float32 of this query head; rows of `size`).
// Args: scale: of query · key; score_scale: the same for powers of 2.
void backward_head(const Rows& query, const Rows& key, const Rows& value, const Rows& output, const Rows& grad,
                   const float* log_sums, Half* query_grad, int64_t query_grad_step, float* key_grad,
                   float* value_grad, int64_t length, int64_t size, float scale, float score_scale,
                   BackwardRoom& room) {
  pack_queries(query, output, grad, log_sums, length, size, room);
  for (int64_t first = 0; first < length; first += kBlock) {
    const Block block(first, length);
    const Rows keys = left_rows(key, block, size, room.key_copy.data());
    const Rows values = left_rows(value, block, size, room.value_copy.data());
    pair_columns(key, block, size, room.keys_across.data());
    unpair(room.keys_across.data(), size, block.padded, room.keys_left.data());
    for (int64_t asking = first; asking < length; asking += kBlock)
      backward_block(keys, values, block, asking, length, size, score_scale, room);
    for (int64_t i = 0; i < block.count * size; ++i) key_grad[first * size + i] = room.key_block[i] * scale;
    std::memcpy(value_grad + first * size, room.value_block.data(), 4 * block.count * size);
  }
  write_query_gradients(length, size, scale, room, query_grad, query_grad_step);
}

// --- what Python calls -----------------------------------------------------------------------------------------------

struct Task {  // one head of one sample, whose first token in the pack is `first`
  int64_t head, group, first, length;
  Task of_key() const { return {head / group, group, first, length}; }
};

}  // namespace

struct Tensor3 {  // (heads, T, D) by strides in elements; D's is 1
  Half* data;
  int64_t head_step, token_step;
  Half* place(const Task& task) const { return data + task.head * head_step + task.first * token_step; }
  Rows rows(const Task& task) const { return {place(task), token_step}; }
};

struct Sizes {
  const int64_t* starts;  // of the samples, and T behind the last
  int64_t num_samples, num_heads, num_key_heads, num_tokens, head_size;
  float scale;
  int num_threads;
};

// Every head of every sample once, over the threads; a thread has one room for all its tasks.
template <typename Room, typename Work>
static void for_each_head(const Sizes& sizes, const Work& work) {
  int64_t longest = 0;
  for (int64_t i = 0; i < sizes.num_samples; ++i) longest = std::max(longest, sizes.starts[i + 1] - sizes.starts[i]);
#pragma omp parallel num_threads(sizes.num_threads)
  {
    Room room(longest, sizes.head_size);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < sizes.num_samples * sizes.num_heads; ++task) {
      const int64_t* start = sizes.starts + task / sizes.num_heads;
      work(Task{task % sizes.num_heads, sizes.num_heads / sizes.num_key_heads, start[0], start[1] - start[0]}, room);
    }
    at::native::cpublas::brgemm_release();
  }
}

extern "C" {

// Whether this processor's products take bfloat16 in pairs: tried on numbers whose product is known.
int attention_is_supported() {
  constexpr int64_t size = 16;
  std::vector<Half> left(size * size, 0x3f80);            // ones
  std::vector<Pairs> right(size * size / 2, 0x40003f80);  // rows of ones and of twos
  std::vector<float> result(size * size, 0);
  try {
    product(size, size, size, left.data(), size, right.data(), result.data(), size, false);
  } catch (const std::exception&) {
    return 0;
  }
  return std::all_of(result.begin(), result.end(), [](float value) { return value == 24.0f; });
}

// output: (heads, T, D) bfloat16; log_sums: (heads, T) float32, to the base 2.
void attention_forward(const Sizes* sizes, const Tensor3* query, const Tensor3* key, const Tensor3* value,
                       const Tensor3* output, float* log_sums) {
  for_each_head<ForwardRoom>(*sizes, [&](const Task& task, ForwardRoom& room) {
    forward_head(query->rows(task), key->rows(task.of_key()), value->rows(task.of_key()), output->place(task),
                 output->token_step, log_sums + task.head * sizes->num_tokens + task.first, task.length,
                 sizes->head_size, sizes->scale * kLog2E, room);
  });
}

// query_grad: (heads, T, D) bfloat16; key_grad, value_grad: (heads, T, D) float32, contiguous, one for each query head.
void attention_backward(const Sizes* sizes, const Tensor3* query, const Tensor3* key, const Tensor3* value,
                        const Tensor3* output, const Tensor3* grad, const float* log_sums, const Tensor3* query_grad,
                        float* key_grad, float* value_grad) {
  for_each_head<BackwardRoom>(*sizes, [&](const Task& task, BackwardRoom& room) {
    const int64_t place = task.head * sizes->num_tokens + task.first, size = sizes->head_size;
    backward_head(query->rows(task), key->rows(task.of_key()), value->rows(task.of_key()), output->rows(task),
                  grad->rows(task), log_sums + place, query_grad->place(task), query_grad->token_step,
                  key_grad + place * size, value_grad + place * size, task.length, size, sizes->scale,
                  sizes->scale * kLog2E, room);
  });
}

}  // extern "C"
