// Threads of a cluster's blocks on a CPU: coroutines that run until they wait for something.
//
// Warps run in turn, first to last or last to first, each until all its lanes wait. When every thread
// waits, the oldest piece of late work is done (a copy that takes its time), and they are tried again.
#pragma once
#include <vector_functions.h>

#include <algorithm>
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <vector>

namespace sparse24 {
extern uint8_t shared[232448];  // what the kernels declare extern __shared__
}

namespace emulator {

using sparse24::shared;
using Work = std::function<void()>;

struct Settings {
  int copies_are_late = 0, last_warp_first = 0;
  int capability = 89, shared_limit = 163 * 1024;
  const uint8_t* readable[2][2] = {};  // [range][begin, end] that copies may read without a map
};

struct Thread {
  std::jmp_buf state;
  uint3 index;
  bool is_started, is_done;
  bool (*is_ready)(void*);  // null: it waits for nothing
  void* condition;
  const char* awaited;
  std::vector<std::vector<Work>> groups;  // of asynchronous copies: committed, then the open one
  std::vector<uint8_t> stack;
};

struct Warp {
  int arrived;
  uint64_t generation;
  const char* operation;
  void* slots[32];
};

struct NamedBarrier {
  int threads, arrived;
  uint64_t generation;
};

struct Block {
  uint3 index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::map<int, NamedBarrier> barriers;
  std::vector<uint8_t> memory;  // its shared memory while another block's is in place

  uint8_t* bytes();  // its shared memory, wherever that is
  bool is_done() const {
    return std::all_of(threads.begin(), threads.end(), [](const Thread& thread) { return thread.is_done; });
  }
};

inline Settings settings;
inline std::vector<Block> cluster;
inline int rank, current;  // the block and the thread in it that run
inline std::deque<Work> late;
inline std::jmp_buf launching, scheduler;
inline const char* failure;
inline int bank_conflicts, threads_of_last_launch;

// Leaves the kernel: its launch returns `what`.
[[noreturn]] inline void fail(const char* what) {
  failure = what;
  _longjmp(launching, 1);
}

inline Thread& thread() { return cluster[rank].threads[current]; }
inline uint8_t* Block::bytes() { return this == &cluster[rank] ? shared : memory.data(); }
inline bool is_readable(const void* from, int bytes) {
  const auto* begin = static_cast<const uint8_t*>(from);
  bool found = bytes == 0;
  for (auto& range : settings.readable) found |= begin >= range[0] && begin + bytes <= range[1];
  return found;
}

template <class Ready>
void wait_until(const char* awaited, Ready ready) {
  if (ready()) return;
  Thread& mine = thread();
  mine.is_ready = [](void* condition) -> bool { return (*static_cast<Ready*>(condition))(); };
  mine.condition = &ready;
  mine.awaited = awaited;
  if (_setjmp(mine.state) == 0) _longjmp(scheduler, 1);
}

// The last of a warp's 32 lanes to arrive computes for all, from what each brought.
template <class Slot, class Compute>
void collective(const char* operation, Slot& mine, Compute compute) {
  Warp& warp = cluster[rank].warps[current / 32];
  if (warp.arrived > 0 && std::strcmp(warp.operation, operation) != 0) fail("a warp diverged");
  warp.operation = operation;
  warp.slots[current % 32] = &mine;
  if (++warp.arrived < 32) {
    const uint64_t generation = warp.generation;
    wait_until(operation, [&] { return warp.generation != generation; });
    return;
  }
  compute(reinterpret_cast<Slot**>(warp.slots));
  warp.arrived = 0;
  ++warp.generation;
}

// Barrier `id` of the block, at which `threads` threads meet.
void meet(int id, int threads);

// Groups of asynchronous copies of this thread; work that is not late is done at once.
void start_copy(Work work);
void commit_group();
void wait_group(int left);

// Runs the blocks from `first` on, a cluster together, and fails if a thread never ends.
void run_cluster(int first, int blocks, int thread_count, const Work& kernel);
void on_new_cluster(Work work);  // is done before every cluster
void on_end_of_cluster(Work work);

}  // namespace emulator
