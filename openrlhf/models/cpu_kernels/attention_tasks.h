// What Python asks of the two passes of attention, and how its heads are dealt to the threads.
#pragma once

#include <cmath>

#include "blocks.h"

template <typename Number>
struct Tensor3 {  // (heads, T, D) by strides in elements; D's is 1
  Number* data;
  int64_t head_step, token_step;
  Number* at(int64_t head, int64_t token) const { return data + head * head_step + token * token_step; }
  Rows<Number> rows(int64_t head, int64_t first) const { return {at(head, first), token_step}; }
};

struct Sizes {
  const int64_t* starts;  // of the samples, and T behind the last
  const int64_t* units;   // number of each unit's first sample, and that of all samples behind the last
  int64_t num_units, num_heads, num_key_heads, num_tokens, head_size;
  float scale;
  int num_threads;
  int64_t group() const { return num_heads / num_key_heads; }
};

namespace {

struct Unit {
  int64_t first, num_tokens;  // of the pack
  Blocks blocks;
  bool is_split;  // each query head is a task of its own
  double work() const { return static_cast<double>(num_tokens) * num_tokens; }
};

struct Task {  // some query heads of a unit that share a key head
  const Unit* unit;
  int64_t key_head, first_head, num_heads;
  double work() const { return unit->work() * num_heads; }
};

// A task is a key head of a unit with all its query heads, so that keys and values are packed once. Where that would be
// more than an eighth of a thread's share of the work, it is one query head. The longest tasks come first.
struct Plan {
  std::vector<Unit> units;
  std::vector<Task> tasks;
  int64_t longest = 0, longest_unsplit = 0;  // padded tokens of a unit
  bool is_any_split = false;

  explicit Plan(const Sizes& sizes) {
    double total = 0;
    for (int64_t i = 0; i < sizes.num_units; ++i) {
      const int64_t *samples = sizes.starts + sizes.units[i], num_samples = sizes.units[i + 1] - sizes.units[i];
      units.push_back({samples[0], samples[num_samples] - samples[0], Blocks(samples, num_samples), false});
      total += units.back().work();
    }
    const double share = total * sizes.num_key_heads / sizes.num_threads;
    for (Unit& unit : units) {
      unit.is_split = sizes.num_threads > 1 && unit.work() > share / 8;
      add_tasks(unit, sizes);
    }
    std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.work() > b.work(); });
  }

  void add_tasks(const Unit& unit, const Sizes& sizes) {
    const int64_t group = sizes.group(), num_heads = unit.is_split ? 1 : group;
    for (int64_t head = 0; head < sizes.num_heads; head += num_heads)
      tasks.push_back({&unit, head / group, head, num_heads});
    longest = std::max(longest, unit.blocks.padded);
    is_any_split |= unit.is_split;
    if (!unit.is_split) longest_unsplit = std::max(longest_unsplit, unit.blocks.padded);
  }
};

// Every task once, over the threads; a thread has one space for all its tasks.
template <typename Workspace, typename Work>
void for_each_task(const Sizes& sizes, const Plan& plan, const Work& work) {
#pragma omp parallel num_threads(sizes.num_threads)
  {
    Workspace space(plan, sizes.head_size);
#pragma omp for schedule(dynamic, 1)
    for (size_t number = 0; number < plan.tasks.size(); ++number) work(plan.tasks[number], space);
    at::native::cpublas::brgemm_release();
  }
}

}  // namespace
