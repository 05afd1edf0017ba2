// Causal attention of packed samples in bfloat16 or float32, forward.
//
// The scores of one block of queries and one block of keys stay in the cache: their products, softmax and gradients
// are in float32, what goes into the next product is rounded to bfloat16 where the inputs are. The forward pass is the
// softmax that is corrected as it goes (Milakov and Gimelshein, 2018; Dao et al., 2022); the backward pass, in
// attention_backward.cpp, computes the scores again. Products are those of blocks.h.
//
// Scores are held transposed, (keys, queries): queries are the lanes of a vector, and what is summed over the
// keys needs no sum within a vector. So is the output, (D, queries), until it is written.
//
// A unit is a sample, or a prompt and the samples that go on from it, which see the prompt and themselves. Units never
// meet. Sizes: T tokens of the pack, L of a unit, D head size. Called by attention.py.

#include <limits>

#include "attention_tasks.h"

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <typename Number>
struct ForwardWorkspace {  // of one thread
  Buffer<Number> key_copies, values;  // of a unit, as left-hand sides: keys (L, D), values (D, L)
  std::vector<Rows<Number>> keys;     // of each block
  Buffer<Word> queries, weights;
  Buffer<float> scores, output;
  // Of each query: the greatest score so far, and the sum of its weights relative to that.
  Buffer<float> tops, sums;

  ForwardWorkspace(const Plan& plan, int64_t size)
      : key_copies(plan.longest * size),
        values(plan.longest * size),
        queries(kBlock * size / kPerWord<Number>),
        weights(kBlock * kBlock / kPerWord<Number>),
        scores(kBlock * kBlock),
        output(size * kBlock),
        tops(kBlock),
        sums(kBlock) {}
};

// kLanes queries, from `column` on, against a block of keys: their weights relative to the greatest score so far, as
// a right-hand side. Where that score rises, the sums so far, of weights and of weight * value, are multiplied by
// 2^(old - new). Args: num_seen: of each query, the keys that it sees; unless `sees_all`.
template <bool sees_all, typename Number>
void attend_columns(const Block& keys, Ints num_seen, int64_t column, int64_t columns, int64_t size, float scale,
                    ForwardWorkspace<Number>& space) {
  const int64_t num_keys = sees_all ? keys.padded : rounded_up(num_seen[kLanes - 1]);
  const float* scores = &space.scores[column];
  const auto of_seen = [&](int64_t row, Floats numbers, float others) {
    return sees_all ? numbers : static_cast<int32_t>(row) < num_seen ? numbers : all(others);
  };
  const auto score_of = [&](int64_t row) { return load(scores + row * columns) * scale; };
  const Floats old_top = load(&space.tops[column]);
  Floats tops[2] = {old_top, old_top};
  for (int64_t row = 0; row < num_keys; row += 2)
    for (int64_t i : {0, 1}) tops[i] = greater(tops[i], of_seen(row + i, score_of(row + i), -kInfinity));
  const Floats top = greater(tops[0], tops[1]);

  Floats sums[2] = {};
  Word* words = &space.weights[column];
  for (int64_t row = 0; row < num_keys; row += kPerWord<Number>, words += columns) {
    Vector<Number> weights[kPerWord<Number>];
    for (int64_t i = 0; i < kPerWord<Number>; ++i) {
      const Floats weight = of_seen(row + i, power_of_2(score_of(row + i) - top), 0);
      sums[i] += weight;
      weights[i] = numbers_of<Number>(weight);
    }
    store(words, words_of(weights));
  }
  for (int64_t row = num_keys; row < keys.padded; row += kPerWord<Number>, words += columns)
    std::fill_n(words, kLanes, 0u);

  const Floats correction = power_of_2(old_top - top);
  store(&space.tops[column], top);
  store(&space.sums[column], load(&space.sums[column]) * correction + (sums[0] + sums[1]));
  if (keys.first == 0 || !any(top > old_top)) return;
  for (int64_t i = 0; i < size; ++i) {
    float* output = &space.output[i * columns + column];
    store(output, load(output) * correction);
  }
}

// Only in the diagonal block are there keys that a query may not see.
template <typename Number>
void attend_block(const Block& block, const Block& keys, const Rows<Number>& key_rows, int64_t size, float scale,
                  ForwardWorkspace<Number>& space) {
  const int64_t columns = block.padded;
  const bool is_diagonal = keys.first == block.first;
  for_strips(keys, is_diagonal, [&](int64_t key, int64_t num_keys, int64_t query) {
    product(num_keys, columns - query, size, key_rows.at(key), key_rows.step, &space.queries[query], columns,
            &space.scores[key * columns + query], columns, false);
  });
  for (int64_t column = 0; column < columns; column += kLanes) {
    const Ints num_seen = is_diagonal ? kLane + static_cast<int32_t>(column + 1)
                                      : Ints{} + static_cast<int32_t>(keys.count);
    const bool sees_all = !is_diagonal && keys.count == keys.padded;
    const auto attend = sees_all ? attend_columns<true, Number> : attend_columns<false, Number>;
    attend(keys, num_seen, column, columns, size, scale, space);
  }
  for_strips(keys, is_diagonal, [&](int64_t key, int64_t num_keys, int64_t query) {
    product(size, columns - query, num_keys, &space.values[keys.place * size + key], keys.padded,
            &space.weights[key / kPerWord<Number> * columns + query], columns, &space.output[query], columns,
            keys.first != 0 || key != 0);
  });
}

template <typename Number>
void write_output(const Block& block, int64_t size, ForwardWorkspace<Number>& space, Number* output,
                  int64_t output_step, float* log_sums) {
  for (int64_t row = 0; row < block.count; ++row) {
    log_sums[block.first + row] = space.tops[row] + std::log2(space.sums[row]);
    space.sums[row] = 1.0f / space.sums[row];
  }
  write_columns(space.output.data(), space.sums.data(), block, size, output, output_step);
}

template <typename Number>
void pack_keys(const Rows<Number>& key, const Rows<Number>& value, const Blocks& blocks, int64_t size,
               ForwardWorkspace<Number>& space) {
  space.keys.clear();
  for (const Block& block : blocks.all) {
    space.keys.push_back(left_rows(key, block, size, space.key_copies.data() + block.place * size));
    left_columns(value, block, size, space.values.data() + block.place * size);
  }
}

// Args: scale: of the scores, for powers of 2.
template <typename Number>
void forward_head(const Rows<Number>& query, Number* output, int64_t output_step, float* log_sums,
                  const Blocks& blocks, int64_t size, float scale, ForwardWorkspace<Number>& space) {
  for (size_t number = 0; number < blocks.all.size(); ++number) {
    const Block& block = blocks.all[number];
    right_columns(query, block, size, space.queries.data());
    std::fill(space.tops.begin(), space.tops.end(), -kInfinity);
    std::fill(space.sums.begin(), space.sums.end(), 0.0f);
    for (size_t keys = 0; keys <= number; ++keys)
      if (blocks.sees(number, keys)) attend_block(block, blocks.all[keys], space.keys[keys], size, scale, space);
    write_output(block, size, space, output, output_step, log_sums);
  }
}

template <typename Number>
void forward(const Sizes& sizes, const Tensor3<Number>& query, const Tensor3<Number>& key,
             const Tensor3<Number>& value, const Tensor3<Number>& output, float* log_sums) {
  using Workspace = ForwardWorkspace<Number>;
  for_each_task<Workspace>(sizes, Plan(sizes), [&](const Task& task, Workspace& space) {
    const int64_t first = task.unit->first, size = sizes.head_size;
    pack_keys(key.rows(task.key_head, first), value.rows(task.key_head, first), task.unit->blocks, size, space);
    for (int64_t head = task.first_head; head < task.first_head + task.num_heads; ++head)
      forward_head(query.rows(head, first), output.at(head, first), output.token_step,
                   log_sums + head * sizes.num_tokens + first, task.unit->blocks, size, sizes.scale * kLog2E, space);
  });
}

}  // namespace

extern "C" {

// Whether torch's products of these numbers work on this processor.
int attention_works_in_bfloat16() { return product_works<Half>(); }
int attention_works_in_float32() { return product_works<float>(); }

// output: (heads, T, D); log_sums: (heads, T) float32, to the base 2.
void attention_forward_in_bfloat16(const Sizes* sizes, const Tensor3<Half>* query, const Tensor3<Half>* key,
                                   const Tensor3<Half>* value, const Tensor3<Half>* output, float* log_sums) {
  forward(*sizes, *query, *key, *value, *output, log_sums);
}

void attention_forward_in_float32(const Sizes* sizes, const Tensor3<float>* query, const Tensor3<float>* key,
                                  const Tensor3<float>* value, const Tensor3<float>* output, float* log_sums) {
  forward(*sizes, *query, *key, *value, *output, log_sums);
}

}  // extern "C"
