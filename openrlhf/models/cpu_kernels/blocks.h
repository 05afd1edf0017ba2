// Blocks of tokens of one head, and their products: how rows of queries, keys and values become the two sides of a
// product of matrices. Used by attention.cpp.
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

  Blocks(const int64_t* starts, int64_t num_samples) {
    int64_t place = 0;
    for (int64_t i = 0; i < num_samples; ++i) {
      const size_t sample_begin = all.size();
      for (int64_t first = starts[i]; first < starts[i + 1]; first += kBlock) {
        const int64_t count = std::min(kBlock, starts[i + 1] - first);
        all.push_back({first - starts[0], count, rounded_up(count), place, sample_begin});
        place += all.back().padded;
      }
      if (i == 0) num_of_prompt = all.size();
    }
  }
  bool sees(size_t query, size_t key) const {
    return key <= query && (key < num_of_prompt || key >= all[query].sample_begin);
  }
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

}  // namespace
