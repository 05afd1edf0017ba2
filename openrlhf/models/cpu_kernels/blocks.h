// Blocks of tokens of one head, and their products: how rows of queries, keys and values become the two sides of a
// product of matrices, and what becomes of a result.
#pragma once

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <vector>

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

// Whether `multiply`, called as `product` below, works on this processor: tried on numbers whose product is known.
template <typename Multiply>
bool works(const Multiply& multiply) {
  constexpr int64_t size = 16;
  const std::vector<Half> left(size * size, 0x3f80);            // ones
  const std::vector<Pairs> right(size * size / 2, 0x40003f80);  // rows of ones and of twos
  std::vector<float> result(size * size, 0);
  try {
    multiply(size, size, size, left.data(), size, right.data(), size, result.data(), size, false);
  } catch (const std::exception&) {
    return false;
  }
  return std::all_of(result.begin(), result.end(), [](float value) { return value == 24.0f; });
}

inline void product_of_halves(int64_t rows, int64_t columns, int64_t inner, const Half* left, int64_t left_step,
                              const Pairs* right, int64_t right_step, float* result, int64_t result_step, bool add) {
  at::native::cpublas::brgemm(rows, columns, inner, left_step, right_step, result_step, add,
                              reinterpret_cast<const at::BFloat16*>(left),
                              reinterpret_cast<const at::BFloat16*>(right), result, true);
}

inline void product_of_floats(int64_t rows, int64_t columns, int64_t inner, const Half* left, int64_t left_step,
                              const Pairs* right, int64_t right_step, float* result, int64_t result_step, bool add) {
  static thread_local Buffer<float> lefts, rights;
  lefts.resize(std::max<size_t>(lefts.size(), rows * inner));
  rights.resize(std::max<size_t>(rights.size(), inner * columns));
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < inner; i += kLanes)
      store(&lefts[row * inner + i], load_halves(left + row * left_step + i));
  for (int64_t row = 0; row < inner; row += 2) {
    for (int64_t column = 0; column < columns; column += kLanes) {
      const Words both = *reinterpret_cast<const Words*>(right + row / 2 * right_step + column);
      store(&rights[row * columns + column], reinterpret_cast<Floats>(both << 16));
      store(&rights[(row + 1) * columns + column], reinterpret_cast<Floats>(both & 0xffff0000u));
    }
  }
  at::native::cpublas::brgemm(rows, columns, inner, inner, columns, result_step, add, lefts.data(), rights.data(),
                              result, false);
}

// left (rows, inner) times right (inner, columns) → result (rows, columns) float32, added to it where `add`.
// Where the processor has no products of bfloat16, the numbers are copied to float32.
inline void product(int64_t rows, int64_t columns, int64_t inner, const Half* left, int64_t left_step,
                    const Pairs* right, int64_t right_step, float* result, int64_t result_step, bool add) {
  static const auto multiply = works(product_of_halves) ? product_of_halves : product_of_floats;
  multiply(rows, columns, inner, left, left_step, right, right_step, result, result_step, add);
}

// --- packing ---------------------------------------------------------------------------------------------------------

// Asks for a block's rows ahead of their use: they lie too far apart for the processor to guess the next.
inline void prefetch(const Rows& rows, const Block& block, int64_t size) {
  for (int64_t row = 0; row < block.count; ++row)
    for (int64_t i = 0; i < size; i += 2 * kLanes) __builtin_prefetch(rows.at(block.first + row) + i);
}

// A block's rows of D as the right-hand side (padded, D) of a product; rows that are missing are zero.
void pair_rows(const Rows& rows, const Block& block, int64_t size, Pairs* pairs) {
  for (int64_t row = 0; row < block.padded; row += 2) {
    for (int64_t i = 0; i < size; i += kLanes, pairs += kLanes) {
      Halves both[2] = {};
      for (int64_t which : {0, 1}) {
        const Half* from = rows.at(block.first + row + which) + i;
        if (row + which < block.count) std::memcpy(&both[which], from, sizeof(Halves));
      }
      *reinterpret_cast<Words*>(pairs) = pairs_of(both[0], both[1]);
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

inline void transpose(Words (&rows)[kLanes]) {
  exchange<1>(rows);
  exchange<2>(rows);
  exchange<4>(rows);
  exchange<8>(rows);
}

inline void copy_words(void* to, Words words, int64_t count) {  // at most sixteen; these without a call
  if (count >= kLanes)
    std::memcpy(to, &words, sizeof(Words));
  else
    std::memcpy(to, &words, 4 * count);
}

// Sixteen rows of 2 * kLanes numbers, of which `present` and `wide` pairs are there; the others are zero.
inline void load_tile(const Half* from, int64_t step, int64_t present, int64_t wide, Words (&tile)[kLanes]) {
  Half copy[2 * kLanes * kLanes];
  if (present < kLanes || wide < kLanes) {
    std::fill_n(copy, 2 * kLanes * kLanes, static_cast<Half>(0));
    for (int64_t j = 0; j < present; ++j) std::memcpy(copy + 2 * kLanes * j, from + j * step, 4 * wide);
    from = copy, step = 2 * kLanes;
  }
#pragma GCC unroll 16
  for (int64_t j = 0; j < kLanes; ++j) std::memcpy(&tile[j], from + j * step, sizeof(Words));
}

// The rows transposed, sixteen tokens at a time: put(i, token, numbers 2i and 2i + 1 of each of them).
template <typename Put>
inline void for_column_pairs(const Rows& rows, const Block& block, int64_t size, const Put& put) {
  for (int64_t row = 0; row < block.padded; row += kLanes) {
    for (int64_t i = 0; i < size / 2; i += kLanes) {
      Words tile[kLanes];
      load_tile(rows.at(block.first + row) + 2 * i, rows.step, std::min(kLanes, block.count - row),
                std::min(kLanes, size / 2 - i), tile);
      transpose(tile);
#pragma GCC unroll 16
      for (int64_t j = 0; j < kLanes; ++j)
        if (i + j < size / 2) put(i + j, row, tile[j]);
    }
  }
}

// A block's rows transposed, as the right-hand side (D, padded) of a product.
void pair_columns(const Rows& rows, const Block& block, int64_t size, Pairs* pairs) {
  for_column_pairs(rows, block, size, [&](int64_t i, int64_t token, Words both) {
    *reinterpret_cast<Words*>(pairs + i * block.padded + token) = both;
  });
}

// A block's rows transposed, as the left-hand side (D, padded).
void left_columns(const Rows& rows, const Block& block, int64_t size, Half* left) {
  for_column_pairs(rows, block, size, [&](int64_t i, int64_t token, Words both) {
    Half* row = left + 2 * i * block.padded + token;
    store_halves(row, __builtin_convertvector(both, Halves));
    store_halves(row + block.padded, __builtin_convertvector(both >> 16, Halves));
  });
}

// A block's rows as the left-hand side (padded, D): where they stand, or copied where the block is not full.
Rows left_rows(const Rows& rows, const Block& block, int64_t size, Half* copy) {
  if (block.count == block.padded) return {rows.at(block.first), rows.step};
  std::fill_n(copy + block.count * size, (block.padded - block.count) * size, static_cast<Half>(0));
  for (int64_t row = 0; row < block.count; ++row) std::memcpy(copy + row * size, rows.at(block.first + row), 2 * size);
  return {copy, size};
}

// The columns of `result`, (D, padded) float32, times a factor each, as rows of D of the block's tokens.
void write_columns(const float* result, const float* factors, const Block& block, int64_t size, Half* to,
                   int64_t to_step) {
  for (int64_t column = 0; column < block.padded; column += kLanes) {
    const Floats factor = load(factors + column);
    const int64_t present = std::min(kLanes, block.count - column);
    for (int64_t i = 0; i < size / 2; i += kLanes) {
      Words tile[kLanes];
#pragma GCC unroll 16
      for (int64_t j = 0; j < kLanes; ++j) {
        const float *upper = result + 2 * (i + j) * block.padded + column, *lower = upper + block.padded;
        tile[j] = Words{};
        if (i + j < size / 2) tile[j] = pairs_of(rounded(load(upper) * factor), rounded(load(lower) * factor));
      }
      transpose(tile);
      Half* row = to + (block.first + column) * to_step + 2 * i;
#pragma GCC unroll 16
      for (int64_t j = 0; j < kLanes; ++j, row += to_step)
        if (j < present) copy_words(row, tile[j], size / 2 - i);
    }
  }
}

}  // namespace
