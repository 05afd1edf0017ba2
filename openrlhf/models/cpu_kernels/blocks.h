// Blocks of tokens of one head, and their products: how rows of queries, keys and values become the two sides of a
// product of matrices, and what becomes of a result.
//
// A `Number` is a bfloat16 (`Half`) or a float32. Products are torch's `brgemm` (oneDNN), summed in float32. Their
// left-hand sides hold numbers; their right-hand sides hold words: each a float32, or two bfloat16 of one column.
#pragma once

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t kBlock = 64;     // queries and keys of a block
constexpr int64_t kTailStep = 16;  // the last block is rounded up to this, so that few kinds of products are made

template <typename Number>
struct Rows {  // of one head: token t begins at data + t * step
  const Number* data;
  int64_t step;
  const Number* at(int64_t token) const { return data + token * step; }
};

int64_t rounded_up(int64_t count) { return (count + kTailStep - 1) / kTailStep * kTailStep; }

struct Block {                        // tokens of a sample
  int64_t first, count, padded;       // from `first` of the unit on; products are made of `padded` of them
  int64_t place;                      // where it stands among the padded tokens of the unit
  size_t sample_begin;                // number of the first block of its sample
};

// The blocks of a unit: of a sample, or of a prompt and the samples behind it, which do not see one another.
struct Blocks {
  std::vector<Block> all;
  size_t num_of_prompt = 0;  // the first ones, which every later one sees
  int64_t padded = 0;        // tokens of all

  Blocks(const int64_t* starts, int64_t num_samples) {
    for (int64_t i = 0; i < num_samples; ++i) {
      const size_t sample_begin = all.size();
      for (int64_t first = starts[i]; first < starts[i + 1]; first += kBlock) {
        const int64_t count = std::min(kBlock, starts[i + 1] - first);
        all.push_back({first - starts[0], count, rounded_up(count), padded, sample_begin});
        padded += all.back().padded;
      }
      if (i == 0) num_of_prompt = all.size();
    }
  }
  bool sees(size_t query, size_t key) const {
    return key <= query && (key < num_of_prompt || key >= all[query].sample_begin);
  }
};

constexpr int64_t kStrip = kBlock / 2;  // keys of the diagonal block

// Where scores of a block of keys and one of queries are needed: work(key, num_keys, query), for that many keys from
// `key` on and the queries from `query` on. In the diagonal block the first queries do not see the last keys.
template <typename Work>
inline void for_strips(const Block& keys, bool is_diagonal, const Work& work) {
  const int64_t height = is_diagonal ? kStrip : kBlock;
  for (int64_t key = 0; key < keys.padded; key += height)
    work(key, std::min(height, keys.padded - key), is_diagonal ? key : 0);
}

// left (rows, inner) times right (inner, columns) → result (rows, columns) float32, added to it where `add`.
inline void product(int64_t rows, int64_t columns, int64_t inner, const Half* left, int64_t left_step,
                    const Word* right, int64_t right_step, float* result, int64_t result_step, bool add) {
  at::native::cpublas::brgemm(rows, columns, inner, left_step, right_step, result_step, add,
                              reinterpret_cast<const at::BFloat16*>(left),
                              reinterpret_cast<const at::BFloat16*>(right), result, true);
}

inline void product(int64_t rows, int64_t columns, int64_t inner, const float* left, int64_t left_step,
                    const Word* right, int64_t right_step, float* result, int64_t result_step, bool add) {
  at::native::cpublas::brgemm(rows, columns, inner, left_step, right_step, result_step, add, left,
                              reinterpret_cast<const float*>(right), result, false);
}

// Whether `product` works on this processor: tried on numbers whose product is known.
template <typename Number>
bool product_works() {
  constexpr int64_t size = 16;
  constexpr bool is_half = std::is_same_v<Number, Half>;
  const std::vector<Number> left(size * size, is_half ? static_cast<Number>(0x3f80) : static_cast<Number>(1));  // ones
  const std::vector<Word> right(size * size, is_half ? 0x40003f80 : 0x3fc00000);  // rows of 1 and of 2, or of 1.5
  std::vector<float> result(size * size, 0);
  try {
    product(size, size, size, left.data(), size, right.data(), size, result.data(), size, false);
  } catch (const std::exception&) {
    return false;
  }
  return std::all_of(result.begin(), result.end(), [](float value) { return value == 24.0f; });
}

// --- packing ---------------------------------------------------------------------------------------------------------

// Asks for a block's rows ahead of their use: they lie too far apart for the processor to guess the next.
template <typename Number>
void prefetch(const Rows<Number>& rows, const Block& block, int64_t size) {
  for (int64_t row = 0; row < block.count; ++row)
    for (int64_t i = 0; i < size; i += kPerWord<Number> * kLanes) __builtin_prefetch(rows.at(block.first + row) + i);
}

// A block's rows of D as the right-hand side (padded, D) of a product; rows that are missing are zero.
template <typename Number>
void right_rows(const Rows<Number>& rows, const Block& block, int64_t size, Word* words) {
  for (int64_t row = 0; row < block.padded; row += kPerWord<Number>) {
    for (int64_t i = 0; i < size; i += kLanes, words += kLanes) {
      Vector<Number> parts[kPerWord<Number>] = {};
      for (int64_t which = 0; which < kPerWord<Number>; ++which) {
        const Number* from = rows.at(block.first + row + which) + i;
        if (row + which < block.count) std::memcpy(&parts[which], from, sizeof(parts[which]));
      }
      store(words, words_of(parts));
    }
  }
}

template <int distance>
inline void exchange(Words (&rows)[kLanes]) {  // one of the steps of a transposition
  const Ints is_upper = (kLane & distance) != 0;  // -1 where true
  const Ints lower = is_upper ? kLane - distance + kLanes : kLane;
  const Ints upper = is_upper ? kLane + kLanes : kLane + distance;
  for (int i = 0; i < kLanes; ++i) {
    if (i & distance) continue;
    const Words a = rows[i], b = rows[i + distance];
    rows[i] = __builtin_shuffle(a, b, lower);
    rows[i + distance] = __builtin_shuffle(a, b, upper);
  }
}

inline void transpose(Words (&rows)[kLanes]) {
  exchange<1>(rows);
  exchange<2>(rows);
  exchange<4>(rows);
  if constexpr (kLanes == 16) exchange<8>(rows);
}

inline void copy_words(void* to, Words words, int64_t count) {  // at most kLanes; these without a call
  if (count >= kLanes)
    std::memcpy(to, &words, sizeof(Words));
  else
    std::memcpy(to, &words, 4 * count);
}

// kLanes rows of kLanes words of numbers, of which `present` and `wide` are there; the others are zero.
template <typename Number>
void load_tile(const Number* from, int64_t step, int64_t present, int64_t wide, Words (&tile)[kLanes]) {
  Number copy[kPerWord<Number> * kLanes * kLanes];
  if (present < kLanes || wide < kLanes) {
    std::fill_n(copy, std::size(copy), Number());
    for (int64_t j = 0; j < present; ++j)
      std::memcpy(copy + kPerWord<Number> * kLanes * j, from + j * step, sizeof(Word) * wide);
    from = copy, step = kPerWord<Number> * kLanes;
  }
#pragma GCC unroll 16
  for (int64_t j = 0; j < kLanes; ++j) std::memcpy(&tile[j], from + j * step, sizeof(Words));
}

// The rows transposed, kLanes tokens at a time: put(i, token, word i of each of them).
template <typename Number, typename Put>
void for_columns(const Rows<Number>& rows, const Block& block, int64_t size, const Put& put) {
  const int64_t num_words = size / kPerWord<Number>;
  for (int64_t row = 0; row < block.padded; row += kLanes) {
    for (int64_t i = 0; i < num_words; i += kLanes) {
      Words tile[kLanes];
      load_tile(rows.at(block.first + row) + kPerWord<Number> * i, rows.step, std::min(kLanes, block.count - row),
                std::min(kLanes, num_words - i), tile);
      transpose(tile);
#pragma GCC unroll 16
      for (int64_t j = 0; j < kLanes; ++j)
        if (i + j < num_words) put(i + j, row, tile[j]);
    }
  }
}

// A block's rows transposed, as the right-hand side (D, padded) of a product.
template <typename Number>
void right_columns(const Rows<Number>& rows, const Block& block, int64_t size, Word* words) {
  for_columns(rows, block, size, [&](int64_t i, int64_t token, Words column) {
    store(words + i * block.padded + token, column);
  });
}

inline void write_words(Half* to, int64_t step, Words pairs) {
  store(to, __builtin_convertvector(pairs, Halves));
  store(to + step, __builtin_convertvector(pairs >> 16, Halves));
}
inline void write_words(float* to, int64_t, Words words) { store(to, reinterpret_cast<Floats>(words)); }

// A block's rows transposed, as the left-hand side (D, padded).
template <typename Number>
void left_columns(const Rows<Number>& rows, const Block& block, int64_t size, Number* left) {
  for_columns(rows, block, size, [&](int64_t i, int64_t token, Words column) {
    write_words(left + kPerWord<Number> * i * block.padded + token, block.padded, column);
  });
}

// A block's rows as the left-hand side (padded, D): where they stand, or copied where the block is not full.
template <typename Number>
Rows<Number> left_rows(const Rows<Number>& rows, const Block& block, int64_t size, Number* copy) {
  if (block.count == block.padded) return {rows.at(block.first), rows.step};
  std::fill_n(copy + block.count * size, (block.padded - block.count) * size, Number());
  for (int64_t row = 0; row < block.count; ++row)
    std::memcpy(copy + row * size, rows.at(block.first + row), sizeof(Number) * size);
  return {copy, size};
}

// The columns of `result`, (D, padded) float32, times a factor each, as rows of D of the block's tokens.
template <typename Number>
void write_columns(const float* result, const float* factors, const Block& block, int64_t size, Number* to,
                   int64_t to_step) {
  const int64_t num_words = size / kPerWord<Number>;
  for (int64_t column = 0; column < block.padded; column += kLanes) {
    const Floats factor = load(factors + column);
    const int64_t present = std::min(kLanes, block.count - column);
    for (int64_t i = 0; i < num_words; i += kLanes) {
      Words tile[kLanes];
#pragma GCC unroll 16
      for (int64_t j = 0; j < kLanes; ++j) {
        const float* row = result + kPerWord<Number> * (i + j) * block.padded + column;
        Vector<Number> parts[kPerWord<Number>] = {};
        for (int64_t which = 0; which < kPerWord<Number> && i + j < num_words; ++which)
          parts[which] = numbers_of<Number>(load(row + which * block.padded) * factor);
        tile[j] = words_of(parts);
      }
      transpose(tile);
      Number* row = to + (block.first + column) * to_step + kPerWord<Number> * i;
#pragma GCC unroll 16
      for (int64_t j = 0; j < kLanes; ++j, row += to_step)
        if (j < present) copy_words(row, tile[j], num_words - i);
    }
  }
}

}  // namespace
