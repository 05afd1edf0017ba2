// Sixteen numbers at once, by the vectors that GCC has on every processor.
#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

using Half = uint16_t;  // a bfloat16

constexpr float kLog2E = 1.44269504088896340736f;

using Floats = float __attribute__((vector_size(64), aligned(4)));
using Ints = int32_t __attribute__((vector_size(64), aligned(4)));
using Words = uint32_t __attribute__((vector_size(64), aligned(4)));
using Halves = uint16_t __attribute__((vector_size(32), aligned(2)));
constexpr int64_t kLanes = 16;
constexpr Ints kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }
inline void store(float* to, Floats values) { *reinterpret_cast<Floats*>(to) = values; }
inline Floats all(float value) { return value - Floats{}; }
inline Floats greater(Floats a, Floats b) { return a > b ? a : b; }
inline Ints others(int distance) { return kLane ^ distance; }

inline bool any(Ints flags) {
  for (int distance : {8, 4, 2, 1}) flags |= __builtin_shuffle(flags, others(distance));
  return flags[0];
}

inline float greatest(Floats values) {
  for (int distance : {8, 4, 2, 1}) values = greater(values, __builtin_shuffle(values, others(distance)));
  return values[0];
}

inline float sum_of(Floats values) {
  for (int distance : {8, 4, 2, 1}) values += __builtin_shuffle(values, others(distance));
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

inline void store_halves(Half* to, Halves halves) { *reinterpret_cast<Halves*>(to) = halves; }

inline Floats load_halves(const Half* from) {
  return reinterpret_cast<Floats>(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words) << 16);
}

// Sixteen pairs of bfloat16: `upper` in the low halves, `lower` in the high ones.
inline Words pairs_of(Halves upper, Halves lower) {
#if __has_builtin(__builtin_shufflevector)  // GCC 12 and later
  return reinterpret_cast<Words>(__builtin_shufflevector(upper, lower, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22,
                                                         7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30,
                                                         15, 31));
#else
  return __builtin_convertvector(upper, Words) | __builtin_convertvector(lower, Words) << 16;
#endif
}

// 2^x with a relative error below 3e-7; NaN stays NaN; below -126 it gives 2^-126.
inline Floats power_of_2(Floats x) {
  x = greater(all(-126.0f), x);  // of what is no number the second is taken
  // 1.5 * 2^23: adding it rounds to a whole number, found in the lower bits; 127: where a number's exponent begins.
  const Floats shift = all(12582912.0f + 127.0f);
  const Floats shifted = x + shift;
  const Floats rest = x - (shifted - shift);
  Floats value = rest * 1.327647245e-3f + 9.675540961e-3f;
  value = value * rest + 5.550713092e-2f;
  value = value * rest + 2.402212024e-1f;
  value = value * rest + 6.931469440e-1f;
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
