// Sixteen numbers at once, by the vectors that GCC has on every processor.
#pragma once

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

inline float greatest(Floats values) {
  for (int distance : {8, 4, 2, 1}) values = greater(values, __builtin_shuffle(values, others(distance)));
  return values[0];
}

inline float sum_of(Floats values) {
  for (int distance : {8, 4, 2, 1}) values += __builtin_shuffle(values, others(distance));
  return values[0];
}

// Rounded to nearest, ties to even: the bfloat16 stand in the lower 16 bits.
inline Words rounded(Floats values) {
  const Words bits = reinterpret_cast<Words>(values);
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

inline void store_halves(Half* to, Words halves) {
  *reinterpret_cast<Halves*>(to) = __builtin_convertvector(halves, Halves);
}

inline Floats load_halves(const Half* from) {
  return reinterpret_cast<Floats>(__builtin_convertvector(*reinterpret_cast<const Halves*>(from), Words) << 16);
}

// 2^x with a relative error below 2e-7; NaN stays NaN; below -126 it gives 2^-126.
inline Floats power_of_2(Floats x) {
  x = x < -126.0f ? all(-126.0f) : x;
  const Floats shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number, found in the lower bits
  const Floats shifted = x + shift;
  const Floats rest = x - (shifted - shift);
  Floats value = rest * 1.535336188319500e-4f + 1.339887440266574e-3f;
  value = value * rest + 9.618437357674640e-3f;
  value = value * rest + 5.550332471162809e-2f;
  value = value * rest + 2.402264791363012e-1f;
  value = value * rest + 6.931472028550421e-1f;
  value = value * rest + 1.0f;
  const Ints exponent = reinterpret_cast<Ints>(shifted) - reinterpret_cast<Ints>(shift) + 127;
  return value * reinterpret_cast<Floats>(exponent << 23);
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
