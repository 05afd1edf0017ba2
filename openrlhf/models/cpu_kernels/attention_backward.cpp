// The backward pass of attention.cpp, whose first lines say what both have in common.
//
// With S scores, P weights, dP = dO V':
//
//   P  = exp(S - log_sums)             from the scores, computed again
//   dS = P * (dP - dots)               dots = sum of output * dO of each query
//   dV += P' dO,  dK += dS' Q,  dQ += dS K
//
// Scores and weights are held transposed, (keys, queries), so that P' and dS' are left-hand sides as they stand. dQ is
// summed transposed too, and turned round once at the end. dK and dV of a key head are sums over its query heads, in
// float32 and in their order: by the task that has all of them, or behind all tasks.

#include <limits>
#include <memory>

#include "attention_tasks.h"

namespace {

struct Gradients {  // of key and value, float32, rows of `size`
  float *key, *value;
  Gradients at(int64_t place) const { return {key + place, value + place}; }
};

template <typename Number>
struct BackwardWorkspace {  // of one thread
  Buffer<Word> queries, queries_transposed, grads, grads_transposed, score_grad_words;
  Buffer<Number> key_copies, value_copies, keys_transposed, weights, score_grads;
  std::vector<Rows<Number>> keys, values;  // of each block, as left-hand sides
  Buffer<float> scores, weight_grads, query_grad_transposed, key_block, value_block, dots, log_sums, key_sums,
      value_sums;

  BackwardWorkspace(const Plan& plan, int64_t size)
      : queries(plan.longest * size / kPerWord<Number>),
        queries_transposed(queries.size()),
        grads(queries.size()),
        grads_transposed(queries.size()),
        score_grad_words(kBlock * kBlock / kPerWord<Number>),
        key_copies(plan.longest * size),
        value_copies(key_copies.size()),
        keys_transposed(key_copies.size()),
        weights(kBlock * kBlock),
        score_grads(kBlock * kBlock),
        scores(kBlock * kBlock),
        weight_grads(kBlock * kBlock),
        query_grad_transposed(plan.longest * size),
        key_block(kBlock * size),
        value_block(kBlock * size),
        dots(plan.longest),
        log_sums(plan.longest),
        key_sums(plan.longest_unsplit * size),
        value_sums(key_sums.size()) {}
  Gradients sums() { return {key_sums.data(), value_sums.data()}; }
};

template <typename Number>
void pack_keys(const Rows<Number>& key, const Rows<Number>& value, const Blocks& blocks, int64_t size,
               BackwardWorkspace<Number>& space) {
  space.keys.clear();
  space.values.clear();
  for (const Block& block : blocks.all) {
    const int64_t offset = block.place * size;
    space.keys.push_back(left_rows(key, block, size, space.key_copies.data() + offset));
    space.values.push_back(left_rows(value, block, size, space.value_copies.data() + offset));
    left_columns(key, block, size, space.keys_transposed.data() + offset);
  }
}

// Packs a unit's queries and output gradients; `dots` is output · its gradient of each token.
template <typename Number>
void pack_queries(const Rows<Number>& query, const Rows<Number>& output, const Rows<Number>& grad,
                  const float* log_sums, const Blocks& blocks, int64_t size, BackwardWorkspace<Number>& space) {
  for (const Block& block : blocks.all) {
    const int64_t offset = block.place * size / kPerWord<Number>;
    if (&block != &blocks.all.back())
      for (const Rows<Number>* rows : {&query, &output, &grad}) prefetch(*rows, *(&block + 1), size);
    right_rows(query, block, size, space.queries.data() + offset);
    right_columns(query, block, size, space.queries_transposed.data() + offset);
    right_rows(grad, block, size, space.grads.data() + offset);
    right_columns(grad, block, size, space.grads_transposed.data() + offset);
    float *dots = space.dots.data() + block.place, *sums = space.log_sums.data() + block.place;
    for (int64_t row = 0; row < block.count; ++row) {
      const Number *a = output.at(block.first + row), *b = grad.at(block.first + row);
      Floats dot = {};
      for (int64_t i = 0; i < size; i += kLanes) dot += load(a + i) * load(b + i);
      dots[row] = sum_of(dot);
      sums[row] = log_sums[block.first + row];
    }
    std::fill(dots + block.count, dots + block.padded, 0.0f);
    // Rows of padding get no weight: exp(score - infinity) is 0.
    std::fill(sums + block.count, sums + block.padded, std::numeric_limits<float>::infinity());
  }
}

// Of kLanes queries and a block of keys: weights and gradients of the scores, the latter also as a right-hand side.
template <bool is_diagonal, typename Number>
void score_gradients(int64_t num_keys, int64_t column, int64_t columns, const float* log_sums, const float* dots,
                     float scale, BackwardWorkspace<Number>& space) {
  const Floats log_sum = load(log_sums + column), dot = load(dots + column);
  for (int64_t row = 0; row < num_keys; row += kPerWord<Number>) {
    Vector<Number> grads[kPerWord<Number>];
    for (int64_t which = 0; which < kPerWord<Number>; ++which) {
      const int64_t place = (row + which) * columns + column;
      const Floats weight = power_of_2(load(&space.scores[place]) * scale - log_sum);
      const Floats grad = weight * (load(&space.weight_grads[place]) - dot);
      const Ints is_seen = kLane >= static_cast<int32_t>(row + which - column);
      grads[which] = numbers_of<Number>(is_diagonal ? (is_seen ? grad : Floats{}) : grad);
      store(&space.weights[place], numbers_of<Number>(is_diagonal ? (is_seen ? weight : Floats{}) : weight));
      store(&space.score_grads[place], grads[which]);
    }
    store(&space.score_grad_words[row / kPerWord<Number> * columns + column], words_of(grads));
  }
}

// One block of keys against one block of queries. Args: scale: of the scores, for powers of 2.
template <typename Number>
void backward_block(const Block& block, const Rows<Number>& keys, const Rows<Number>& values, const Block& queries,
                    int64_t size, float scale, BackwardWorkspace<Number>& space) {
  const int64_t rows = block.padded, columns = queries.padded, offset = queries.place * size / kPerWord<Number>;
  const bool is_diagonal = queries.first == block.first, is_first_key = block.first == 0;
  for_strips(block, is_diagonal, [&](int64_t key, int64_t num_keys, int64_t query) {
    const int64_t place = key * columns + query, num_queries = columns - query;
    product(num_keys, num_queries, size, keys.at(key), keys.step, &space.queries_transposed[offset + query], columns,
            &space.scores[place], columns, false);
    product(num_keys, num_queries, size, values.at(key), values.step, &space.grads_transposed[offset + query], columns,
            &space.weight_grads[place], columns, false);
  });
  const auto gradients = is_diagonal ? score_gradients<true, Number> : score_gradients<false, Number>;
  for (int64_t column = 0; column < columns; column += kLanes) {
    const int64_t num_keys = is_diagonal ? std::min(rows, column / kStrip * kStrip + kStrip) : rows;
    gradients(num_keys, column, columns, &space.log_sums[queries.place], &space.dots[queries.place], scale, space);
  }
  for_strips(block, is_diagonal, [&](int64_t key, int64_t num_keys, int64_t query) {
    const int64_t place = key * columns + query, num_queries = columns - query;
    const int64_t from = offset + query * size / kPerWord<Number>;
    product(num_keys, size, num_queries, &space.weights[place], columns, &space.grads[from], size,
            &space.value_block[key * size], size, !is_diagonal);
    product(num_keys, size, num_queries, &space.score_grads[place], columns, &space.queries[from], size,
            &space.key_block[key * size], size, !is_diagonal);
    product(size, num_queries, num_keys, &space.keys_transposed[block.place * size + key], rows,
            &space.score_grad_words[key / kPerWord<Number> * columns + query], columns,
            &space.query_grad_transposed[queries.place * size + query], columns, !is_first_key || key != 0);
  });
}

void put(const Buffer<float>& numbers, int64_t count, bool add, float* sums) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats number = load(&numbers[i]);
    store(sums + i, add ? load(sums + i) + number : number);
  }
}

// One query head: the gradient of its queries, transposed, into the space; those of its keys, of query · key without
// `scale`, and values put or added into `sums`.
template <typename Number>
void backward_head(const Blocks& blocks, int64_t size, float scale, const Gradients& sums, bool add,
                   BackwardWorkspace<Number>& space) {
  for (size_t number = 0; number < blocks.all.size(); ++number) {
    const Block& block = blocks.all[number];
    for (size_t queries = number; queries < blocks.all.size(); ++queries)
      if (blocks.sees(queries, number))
        backward_block(block, space.keys[number], space.values[number], blocks.all[queries], size, scale, space);
    const Gradients here = sums.at(block.first * size);
    put(space.key_block, block.count * size, add, here.key);
    put(space.value_block, block.count * size, add, here.value);
  }
}

template <typename Number>
void write_query_gradients(const Blocks& blocks, int64_t size, float scale, const BackwardWorkspace<Number>& space,
                           Number* to, int64_t step) {
  float factors[kBlock];
  std::fill_n(factors, kBlock, scale);
  for (const Block& block : blocks.all)
    write_columns(&space.query_grad_transposed[block.place * size], factors, block, size, to, step);
}

// The sums of `num_parts` rows of D, `part_step` numbers apart, in their order.
template <typename Number>
void write_sums(const float* parts, int64_t num_parts, int64_t part_step, int64_t size, float factor, Number* to) {
  for (int64_t i = 0; i < size; i += kLanes) {
    Floats sum = load(parts + i);
    for (int64_t part = 1; part < num_parts; ++part) sum += load(parts + part * part_step + i);
    store(to + i, numbers_of<Number>(sum * factor));
  }
}

template <typename Number>
void backward(const Sizes& sizes, const Tensor3<Number>& query, const Tensor3<Number>& key,
              const Tensor3<Number>& value, const Tensor3<Number>& output, const Tensor3<Number>& grad,
              const float* log_sums, const Tensor3<Number>& query_grad, const Tensor3<Number>& key_grad,
              const Tensor3<Number>& value_grad) {
  using Workspace = BackwardWorkspace<Number>;
  const int64_t size = sizes.head_size, head_step = sizes.num_tokens * size;
  const Plan plan(sizes);
  // Of each query head of split units. Memory that nobody touches costs nothing.
  const std::unique_ptr<float[]> parts(new float[plan.is_any_split ? 2 * sizes.num_heads * head_step : 0]);
  const Gradients of_heads{parts.get(), parts.get() + sizes.num_heads * head_step};

  const auto write = [&](const Gradients& from, int64_t num_parts, int64_t key_head, int64_t token) {
    write_sums(from.key, num_parts, head_step, size, sizes.scale, key_grad.at(key_head, token));
    write_sums(from.value, num_parts, head_step, size, 1.0f, value_grad.at(key_head, token));
  };
  for_each_task<Workspace>(sizes, plan, [&](const Task& task, Workspace& space) {
    const Blocks& blocks = task.unit->blocks;
    const int64_t first = task.unit->first;
    pack_keys(key.rows(task.key_head, first), value.rows(task.key_head, first), blocks, size, space);
    for (int64_t head = task.first_head; head < task.first_head + task.num_heads; ++head) {
      pack_queries(query.rows(head, first), output.rows(head, first), grad.rows(head, first),
                   log_sums + head * sizes.num_tokens + first, blocks, size, space);
      const Gradients sums = task.unit->is_split ? of_heads.at(head * head_step + first * size) : space.sums();
      backward_head(blocks, size, sizes.scale * kLog2E, sums, head > task.first_head, space);
      write_query_gradients(blocks, size, sizes.scale, space, query_grad.at(head, first), query_grad.token_step);
    }
    if (task.unit->is_split) return;
    for (int64_t token = 0; token < task.unit->num_tokens; ++token)
      write(space.sums().at(token * size), 1, task.key_head, first + token);
  });
  for (const Unit& unit : plan.units) {
    if (!unit.is_split) continue;
#pragma omp parallel for collapse(2) schedule(static) num_threads(sizes.num_threads)
    for (int64_t key_head = 0; key_head < sizes.num_key_heads; ++key_head)
      for (int64_t token = unit.first; token < unit.first + unit.num_tokens; ++token)
        write(of_heads.at(key_head * sizes.group() * head_step + token * size), sizes.group(), key_head, token);
  }
}

}  // namespace

extern "C" {

// query_grad: (heads, T, D); key_grad, value_grad: (key heads, T, D).
void attention_backward_in_bfloat16(const Sizes* sizes, const Tensor3<Half>* query, const Tensor3<Half>* key,
                                    const Tensor3<Half>* value, const Tensor3<Half>* output,
                                    const Tensor3<Half>* grad, const float* log_sums,
                                    const Tensor3<Half>* query_grad, const Tensor3<Half>* key_grad,
                                    const Tensor3<Half>* value_grad) {
  backward(*sizes, *query, *key, *value, *output, *grad, log_sums, *query_grad, *key_grad, *value_grad);
}

void attention_backward_in_float32(const Sizes* sizes, const Tensor3<float>* query, const Tensor3<float>* key,
                                   const Tensor3<float>* value, const Tensor3<float>* output,
                                   const Tensor3<float>* grad, const float* log_sums,
                                   const Tensor3<float>* query_grad, const Tensor3<float>* key_grad,
                                   const Tensor3<float>* value_grad) {
  backward(*sizes, *query, *key, *value, *output, *grad, log_sums, *query_grad, *key_grad, *value_grad);
}

}  // extern "C"
