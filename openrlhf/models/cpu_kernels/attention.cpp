// Causal attention of packed samples in bfloat16, forward and backward, for CPUs whose matrix units take bfloat16.
//
// The scores of one block of queries and one block of keys stay in the cache: their products, softmax and gradients
// are in float32, what goes into the next product is rounded to bfloat16. The forward pass is the softmax that is
// corrected as it goes (Milakov and Gimelshein, 2018; Dao et al., 2022); the backward pass computes the scores again.
// Products are torch's `brgemm` (oneDNN). Its right-hand side holds pairs of rows side by side: `Pairs` in blocks.h.
//
// A task is one query head of one unit: a sample, or a prompt and the samples that go on from it, which see the prompt
// and themselves. Units never meet. Sizes: T tokens of the pack, L of a unit, D head size.
// Called by attention.py.

#include <algorithm>
#include <cmath>
#include <limits>

#include "blocks.h"

namespace {

// --- forward ---------------------------------------------------------------------------------------------------------

struct ForwardWorkspace {  // of one thread
  Buffer<Pairs> keys_transposed, values;
  Buffer<Half> query_copy, weights;
  Buffer<float> scores, output;
  // Of each query: the greatest score so far, and the sum of its weights relative to that.
  float maxima[kBlock], sums[kBlock];

  ForwardWorkspace(int64_t longest, int64_t size)  // longest: padded tokens of a unit
      : keys_transposed(longest * size / 2),
        values(keys_transposed.size()),
        query_copy(kBlock * size),
        weights(kBlock * kBlock),
        scores(kBlock * kBlock),
        output(kBlock * size) {}
};

void multiply(float* row, int64_t size, float factor) {
  for (int64_t i = 0; i < size; i += kLanes) store(row + i, load(row + i) * factor);
}

// One row of scores: its weights, relative to `top`, the greatest score so far, which only rises.
// The query sees the first `seen` of `columns` tokens. Returns the factor by which earlier weights are corrected.
float softmax_row(const float* scores, int64_t seen, int64_t columns, float scale, float& top, float& sum,
                  Half* weights) {
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

// One block of queries against one block of keys. `space.output` holds the sum of weight * value so far, relative to the greatest score so far. Where that rises, softmax_row returns 2^(old - new), which the sum is
// multiplied by before the new block's products are added. Only the diagonal block has keys that a query may not see.
void attend_block(const Rows& queries, const Block& block, const Block& keys, int64_t size, float scale,
                  ForwardWorkspace& space) {
  const bool is_diagonal = keys.first == block.first, is_first = keys.first == 0;
  const int64_t columns = keys.padded, offset = keys.place * size / 2;
  product(block.padded, columns, size, queries.data, queries.step, space.keys_transposed.data() + offset,
          space.scores.data(), columns, false);
  for (int64_t row = 0; row < block.count; ++row) {
    const float correction =
        softmax_row(space.scores.data() + row * columns, is_diagonal ? row + 1 : keys.count, columns, scale,
                    space.maxima[row], space.sums[row], space.weights.data() + row * columns);
    if (!is_first && correction != 1.0f) multiply(space.output.data() + row * size, size, correction);
  }
  product(block.padded, size, columns, space.weights.data(), columns, space.values.data() + offset,
          space.output.data(), size, !is_first);
}

void write_output(const Block& block, int64_t size, const ForwardWorkspace& space, Half* output, int64_t output_step,
                  float* log_sums) {
  for (int64_t row = 0; row < block.count; ++row) {
    Half* into = output + (block.first + row) * output_step;
    const float factor = 1.0f / space.sums[row];
    for (int64_t i = 0; i < size; i += kLanes)
      store_halves(into + i, rounded(load(space.output.data() + row * size + i) * factor));
    log_sums[block.first + row] = space.maxima[row] + std::log2(space.sums[row]);
  }
}

// Args: scale: of the scores, for powers of 2.
void forward_head(const Rows& query, const Rows& key, const Rows& value, Half* output, int64_t output_step,
                  float* log_sums, const Blocks& blocks, int64_t size, float scale, ForwardWorkspace& space) {
  for (const Block& block : blocks.all) {
    pair_columns(key, block, size, space.keys_transposed.data() + block.place * size / 2);
    pair_rows(value, block, size, space.values.data() + block.place * size / 2);
  }
  for (size_t number = 0; number < blocks.all.size(); ++number) {
    const Block& block = blocks.all[number];
    const Rows queries = left_rows(query, block, size, space.query_copy.data());
    std::fill_n(space.maxima, kBlock, -std::numeric_limits<float>::infinity());
    std::fill_n(space.sums, kBlock, 0.0f);
    for (size_t keys = 0; keys <= number; ++keys)
      if (blocks.sees(number, keys)) attend_block(queries, block, blocks.all[keys], size, scale, space);
    write_output(block, size, space, output, output_step, log_sums);
  }
}

// --- backward --------------------------------------------------------------------------------------------------------

struct BackwardWorkspace {  // of one thread; "transposed": transposed
  Buffer<Pairs> queries, queries_transposed, grads, grads_transposed, keys_transposed, score_grad_pairs;
  Buffer<Half> keys_left, key_copy, value_copy, weights, score_grads;
  Buffer<float> scores, weight_grads, query_grad_transposed, key_block, value_block, dots, log_sums;

  BackwardWorkspace(int64_t longest, int64_t size)  // longest: padded tokens of a unit
      : queries(longest * size / 2),
        queries_transposed(queries.size()),
        grads(queries.size()),
        grads_transposed(queries.size()),
        keys_transposed(kBlock * size / 2),
        score_grad_pairs(kBlock * kBlock / 2),
        keys_left(kBlock * size),
        key_copy(kBlock * size),
        value_copy(kBlock * size),
        weights(kBlock * kBlock),
        score_grads(kBlock * kBlock),
        scores(kBlock * kBlock),
        weight_grads(kBlock * kBlock),
        query_grad_transposed(longest * size),
        key_block(kBlock * size),
        value_block(kBlock * size),
        dots(longest),
        log_sums(longest) {}
};

// Packs a unit's queries and output gradients; `dots` is output · its gradient of each token.
void pack_queries(const Rows& query, const Rows& output, const Rows& grad, const float* log_sums, const Blocks& blocks,
                  int64_t size, BackwardWorkspace& space) {
  for (const Block& block : blocks.all) {
    const int64_t offset = block.place * size / 2;
    pair_rows(query, block, size, space.queries.data() + offset);
    pair_columns(query, block, size, space.queries_transposed.data() + offset);
    pair_rows(grad, block, size, space.grads.data() + offset);
    pair_columns(grad, block, size, space.grads_transposed.data() + offset);
    float *dots = space.dots.data() + block.place, *sums = space.log_sums.data() + block.place;
    for (int64_t row = 0; row < block.count; ++row) {
      const Half *a = output.at(block.first + row), *b = grad.at(block.first + row);
      Floats dot = {};
      for (int64_t i = 0; i < size; i += kLanes) dot += load_halves(a + i) * load_halves(b + i);
      dots[row] = sum_of(dot);
      sums[row] = log_sums[block.first + row];
    }
    std::fill(dots + block.count, dots + block.padded, 0.0f);
    // Rows of padding get no weight: exp(score - infinity) is 0.
    std::fill(sums + block.count, sums + block.padded, std::numeric_limits<float>::infinity());
  }
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
                     bool is_diagonal, BackwardWorkspace& space) {
  for (int64_t row = 0; row < num_keys; row += 2) {
    for (int64_t i = 0; i < columns; i += kLanes) {
      Words halves[2];
      for (int64_t which : {0, 1}) {
        const int64_t place = (row + which) * columns + i;
        const int64_t first_seen = is_diagonal ? row + which - i : 0;
        halves[which] =
            score_gradient(space.scores.data() + place, space.weight_grads.data() + place, log_sums + i, dots + i,
                           scale, first_seen, space.weights.data() + place, space.score_grads.data() + place);
      }
      Pairs* pairs = space.score_grad_pairs.data() + row / 2 * columns + i;
      *reinterpret_cast<Words*>(pairs) = halves[0] | halves[1] << 16;
    }
  }
}

void write_query_gradients(const Blocks& blocks, int64_t size, float scale, const BackwardWorkspace& space,
                           Half* query_grad, int64_t step) {
  for (const Block& block : blocks.all) {
    for (int64_t row = 0; row < block.count; ++row) {
      const float* transposed = space.query_grad_transposed.data() + block.place * size + row;
      for (int64_t i = 0; i < size; i += kLanes) {
        Floats values;
        for (int64_t lane = 0; lane < kLanes; ++lane) values[lane] = transposed[(i + lane) * block.padded];
        store_halves(query_grad + (block.first + row) * step + i, rounded(values * scale));
      }
    }
  }
}

// One block of keys against one block of queries. With S scores, P weights, dP = dO V':
//
//   P  = exp(S - log_sums)             from the scores, computed again
//   dS = P * (dP - dots)               dots = sum of output * dO of each query
//   dV += P' dO,  dK += dS' Q,  dQ += dS K
//
// Scores and weights are held transposed, (keys, queries), so that P' and dS' are left-hand sides as they stand. dQ is
// summed transposed too, and turned round once at the end.
void backward_block(const Rows& keys, const Rows& values, const Block& block, const Block& queries, int64_t size,
                    float score_scale, BackwardWorkspace& space) {
  const int64_t rows = block.padded, columns = queries.padded, offset = queries.place * size / 2;
  const bool is_diagonal = queries.first == block.first, is_first_query = is_diagonal, is_first_key = block.first == 0;
  product(rows, columns, size, keys.data, keys.step, space.queries_transposed.data() + offset, space.scores.data(),
          columns, false);
  product(rows, columns, size, values.data, values.step, space.grads_transposed.data() + offset,
          space.weight_grads.data(), columns, false);
  score_gradients(rows, columns, space.log_sums.data() + queries.place, space.dots.data() + queries.place, score_scale,
                  is_diagonal, space);
  product(rows, size, columns, space.weights.data(), columns, space.grads.data() + offset, space.value_block.data(),
          size, !is_first_query);
  product(rows, size, columns, space.score_grads.data(), columns, space.queries.data() + offset,
          space.key_block.data(), size, !is_first_query);
  product(size, columns, rows, space.keys_left.data(), rows, space.score_grad_pairs.data(),
          space.query_grad_transposed.data() + queries.place * size, columns, !is_first_key);
}

// Gradients of query (bfloat16), key and value (float32 of this query head; rows of `size`).
// Args: scale: of query · key; score_scale: the same for powers of 2.
void backward_head(const Rows& query, const Rows& key, const Rows& value, const Rows& output, const Rows& grad,
                   const float* log_sums, Half* query_grad, int64_t query_grad_step, float* key_grad,
                   float* value_grad, const Blocks& blocks, int64_t size, float scale, float score_scale,
                   BackwardWorkspace& space) {
  pack_queries(query, output, grad, log_sums, blocks, size, space);
  for (size_t number = 0; number < blocks.all.size(); ++number) {
    const Block& block = blocks.all[number];
    const int64_t first = block.first * size;
    const Rows keys = left_rows(key, block, size, space.key_copy.data());
    const Rows values = left_rows(value, block, size, space.value_copy.data());
    pair_columns(key, block, size, space.keys_transposed.data());
    unpair(space.keys_transposed.data(), size, block.padded, space.keys_left.data());
    for (size_t queries = number; queries < blocks.all.size(); ++queries)
      if (blocks.sees(queries, number))
        backward_block(keys, values, block, blocks.all[queries], size, score_scale, space);
    for (int64_t i = 0; i < block.count * size; ++i) key_grad[first + i] = space.key_block[i] * scale;
    std::memcpy(value_grad + first, space.value_block.data(), 4 * block.count * size);
  }
  write_query_gradients(blocks, size, scale, space, query_grad, query_grad_step);
}

// --- what Python calls -----------------------------------------------------------------------------------------------

struct Task {  // one head of one unit, whose first token in the pack is `first`
  int64_t head, group, first;
  Task of_key() const { return {head / group, group, first}; }
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
  const int64_t* units;   // number of each unit's first sample, and that of all samples behind the last
  int64_t num_units, num_heads, num_key_heads, num_tokens, head_size;
  float scale;
  int num_threads;
};

// Every head of every unit once, over the threads; a thread has one space for all its tasks.
template <typename Workspace, typename Work>
static void for_each_head(const Sizes& sizes, const Work& work) {
  std::vector<Blocks> units;
  int64_t longest = 0;
  for (int64_t i = 0; i < sizes.num_units; ++i) {
    units.emplace_back(sizes.starts + sizes.units[i], sizes.units[i + 1] - sizes.units[i]);
    for (const Block& block : units.back().all) longest = std::max(longest, block.place + block.padded);
  }
#pragma omp parallel num_threads(sizes.num_threads)
  {
    Workspace space(longest, sizes.head_size);
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < sizes.num_units * sizes.num_heads; ++task) {
      const int64_t unit = task / sizes.num_heads, group = sizes.num_heads / sizes.num_key_heads;
      work(Task{task % sizes.num_heads, group, sizes.starts[sizes.units[unit]]}, units[unit], space);
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
  for_each_head<ForwardWorkspace>(*sizes, [&](const Task& task, const Blocks& blocks, ForwardWorkspace& space) {
    forward_head(query->rows(task), key->rows(task.of_key()), value->rows(task.of_key()), output->place(task),
                 output->token_step, log_sums + task.head * sizes->num_tokens + task.first, blocks,
                 sizes->head_size, sizes->scale * kLog2E, space);
  });
}

// query_grad: (heads, T, D) bfloat16; key_grad, value_grad: (heads, T, D) float32, contiguous, one for each query head.
void attention_backward(const Sizes* sizes, const Tensor3* query, const Tensor3* key, const Tensor3* value,
                        const Tensor3* output, const Tensor3* grad, const float* log_sums, const Tensor3* query_grad,
                        float* key_grad, float* value_grad) {
  for_each_head<BackwardWorkspace>(*sizes, [&](const Task& task, const Blocks& blocks, BackwardWorkspace& space) {
    const int64_t place = task.head * sizes->num_tokens + task.first, size = sizes->head_size;
    backward_head(query->rows(task), key->rows(task.of_key()), value->rows(task.of_key()), output->rows(task),
                  grad->rows(task), log_sums + place, query_grad->place(task), query_grad->token_step,
                  key_grad + place * size, value_grad + place * size, blocks, size, sizes->scale,
                  sizes->scale * kLog2E, space);
  });
}

}  // extern "C"
