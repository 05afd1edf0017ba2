// As many numbers at once as a vector of the processor holds, `kLanes`: by the vectors that GCC has on every processor.
// It computes longer ones than the processor has number by number, where they are compared or shuffled.
#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>
#include <vector>

namespace {

using Half = uint16_t;  // a bfloat16

constexpr float kLog2E = 1.44269504088896340736f;

#ifdef __AVX512F__
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
using Floats = float __attribute__((vector_size(4 * kLanes), aligned(4)));
using Ints = int32_t __attribute__((vector_size(4 * kLanes), aligned(4)));
using Words = uint32_t __attribute__((vector_size(4 * kLanes), aligned(4)));
using Halves = uint16_t __attribute__((vector_size(2 * kLanes), aligned(2)));
#ifdef __AVX512F__
constexpr Ints kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
constexpr Ints kLane = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }
inline void store(float* to, Floats values) { *reinterpret_cast<Floats*>(to) = values; }
inline Floats all(float value) { return value - Floats{}; }
inline Floats greater(Floats a, Floats b) { return a > b ? a : b; }
inline Ints others(int distance) { return kLane ^ distance; }

inline bool any(Ints flags) {
  for (int distance = kLanes / 2; distance; distance /= 2) flags |= __builtin_shuffle(flags, others(distance));
  return flags[0];
}

inline float greatest(Floats values) {
  for (int distance = kLanes / 2; distance; distance /= 2)
    values = greater(values, __builtin_shuffle(values, others(distance)));
  return values[0];
}

inline float sum_of(Floats values) {
  for (int distance = kLanes / 2; distance; distance /= 2) values += __builtin_shuffle(values, others(distance));
  return values[0];
}

// Rounded to nearest, ties to even. The processor's own instruction takes numbers below 2^-126 for zero.
inline Halves rounded(Floats values) {
#ifdef __AVX512BF16__
  return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(values)));
#else
  const Words bits = reinterpret_cast<Words>(values);
  const Words nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return __builtin_convertvector(values == values ? nearest : bits >> 16 | 64u, Halves);  // 64: NaN stays NaN
#endif
}

inline void store(Half* to, Halves halves) { *reinterpret_cast<Halves*>(to) = halves; }

inline Floats load(const Half* from) {
  return reinterpret_cast<Floats>(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words) << 16);
}

// Pairs of bfloat16: `upper` in the low halves, `lower` in the high ones.
inline Words pairs_of(Halves upper, Halves lower) {
#if defined(__AVX512F__) && __has_builtin(__builtin_shufflevector)  // GCC 12 and later
  return reinterpret_cast<Words>(__builtin_shufflevector(upper, lower, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22,
                                                         7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30,
                                                         15, 31));
#else
  return __builtin_convertvector(upper, Words) | __builtin_convertvector(lower, Words) << 16;
#endif
}

// What code for both kinds of numbers, `Half` and float, knows of them: how many of one column are a word, and a vector
// of them, from float32 and to words.
using Word = uint32_t;
template <typename Number>
constexpr int64_t kPerWord = sizeof(Word) / sizeof(Number);

template <typename Number>
struct VectorOf {
  using type = Floats;
};
template <>
struct VectorOf<Half> {
  using type = Halves;
};
template <typename Number>
using Vector = typename VectorOf<Number>::type;

template <typename Number>
Vector<Number> numbers_of(Floats values) {
  if constexpr (std::is_same_v<Number, Half>)
    return rounded(values);
  else
    return values;
}

inline Words words_of(const Halves (&rows)[2]) { return pairs_of(rows[0], rows[1]); }
inline Words words_of(const Floats (&row)[1]) { return reinterpret_cast<Words>(row[0]); }
inline void store(Word* to, Words words) { *reinterpret_cast<Words*>(to) = words; }

// 2^x with a relative error below 1e-7; NaN stays NaN; below -126 it gives 2^-126.
inline Floats power_of_2(Floats x) {
  x = greater(all(-126.0f), x);  // of what is no number the second is taken
  // 1.5 * 2^23: adding it rounds to a whole number, found in the lower bits; 127: where a number's exponent begins.
  const Floats shift = all(12582912.0f + 127.0f);
  const Floats shifted = x + shift;
  const Floats rest = x - (shifted - shift);
  Floats value = rest * 1.535336196e-4f + 1.339887502e-3f;
  value = value * rest + 9.618436918e-3f;
  value = value * rest + 5.550332367e-2f;
  value = value * rest + 2.402264774e-1f;
  value = value * rest + 6.931471825e-1f;
  value = value * rest + 1.0f;
  return value * reinterpret_cast<Floats>(reinterpret_cast<Words>(shifted) << 23);
}

template <typename Number>
struct OnCacheLines {  // an allocator: vectors that cross no borders of cache lines
  using value_type = Number;
  OnCacheLines() = default;
  template <typename Other>
  OnCacheLines(const OnCacheLines<Other>&) {}
  Number* allocate(size_t count) { return static_cast<Number*>(::operator new(count * sizeof(Number), kLine)); }
  void deallocate(Number* numbers, size_t) { ::operator delete(numbers, kLine); }
  bool operator==(const OnCacheLines&) const { return true; }
  static constexpr std::align_val_t kLine{64};
};

template <typename Number>
using Buffer = std::vector<Number, OnCacheLines<Number>>;

}  // namespace
