// The scheduler of the emulator's threads.
#include "cuda.h"

#include <ucontext.h>

#include <string>

namespace emulator {

namespace {

ucontext_t starting, stopped;
const Work* body;

std::vector<Work>& works_before() {
  static std::vector<Work> works;
  return works;
}
std::vector<Work>& works_after() {
  static std::vector<Work> works;
  return works;
}

void thread_main() {
  (*body)();
  thread().is_done = true;
  _longjmp(scheduler, 1);
}

void start_on_own_stack(Thread& thread) {
  thread.is_started = true;
  getcontext(&starting);
  starting.uc_stack.ss_sp = thread.stack.data();
  starting.uc_stack.ss_size = thread.stack.size();
  starting.uc_link = nullptr;
  makecontext(&starting, thread_main, 0);
  swapcontext(&stopped, &starting);
}

// Runs a thread until it waits.
void resume(int index) {
  current = index;
  Thread& mine = thread();
  threadIdx = mine.index;
  mine.is_ready = nullptr;
  if (_setjmp(scheduler) != 0) return;
  if (mine.is_started) _longjmp(mine.state, 1);
  start_on_own_stack(mine);
}

// Runs a warp until all its lanes wait or are done; says whether any of them ran.
bool run_warp(int warp) {
  bool ran = false;
  for (bool is_busy = true; is_busy;) {
    is_busy = false;
    for (int i = 32 * warp; i < 32 * warp + 32; ++i) {
      current = i;
      Thread& mine = thread();
      if (mine.is_done || (mine.is_ready != nullptr && !mine.is_ready(mine.condition))) continue;
      resume(i);
      is_busy = ran = true;
    }
  }
  return ran;
}

// Makes a block the running one: its shared memory is put in place.
void enter(int next) {
  if (next != rank) {
    cluster[rank].memory.assign(shared, shared + sizeof(shared));
    std::memcpy(shared, cluster[next].memory.data(), sizeof(shared));
    rank = next;
  }
  blockIdx = cluster[next].index;
}

bool run_block(int next) {
  enter(next);
  const int warps = static_cast<int>(cluster[next].warps.size());
  bool ran = false;
  for (int i = 0; i < warps; ++i) ran |= run_warp(settings.last_warp_first ? warps - 1 - i : i);
  return ran;
}

void prepare(Block& block, int index, int thread_count) {
  block.index = {static_cast<unsigned>(index), 0, 0};
  block.threads.resize(thread_count);
  block.warps.assign(thread_count / 32, Warp{});
  block.barriers.clear();
  block.memory.assign(sizeof(shared), 0xff);  // NaN of every float type
  for (int i = 0; i < thread_count; ++i) {
    Thread& thread = block.threads[i];
    thread.index = {static_cast<unsigned>(i), 0, 0};
    thread.is_started = thread.is_done = false;
    thread.is_ready = nullptr;
    thread.groups.clear();
    thread.stack.resize(64 * 1024);
  }
}

// Says of everything that is waited for which thread waits first.
void require_that_all_are_done() {
  static std::string words;
  std::map<std::string, std::string> first;
  for (const Block& block : cluster) {
    for (const Thread& thread : block.threads) {
      if (thread.is_done) continue;
      first.emplace(thread.awaited,
                    "thread " + std::to_string(thread.index.x) + " of block " + std::to_string(block.index.x));
    }
  }
  if (first.empty()) return;
  words = "a thread waits for ever:";
  for (const auto& [awaited, who] : first) words += " " + who + " for " + awaited + ";";
  words.pop_back();
  fail(words.c_str());
}

}  // namespace

void meet(int id, int threads) {
  NamedBarrier& barrier = cluster[rank].barriers[id];
  if (threads % 32 != 0) fail("a barrier of part of a warp");
  if (barrier.arrived > 0 && barrier.threads != threads) fail("a barrier of two numbers of threads");
  barrier.threads = threads;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  const uint64_t generation = barrier.generation;
  wait_until("a barrier of threads", [&] { return barrier.generation != generation; });
}

void start_copy(Work work) {
  auto& groups = thread().groups;
  if (groups.empty()) groups.emplace_back();
  if (settings.copies_are_late) {
    groups.back().push_back(std::move(work));
  } else {
    work();
  }
}
void commit_group() {
  auto& groups = thread().groups;
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}
void wait_group(int left) {
  auto& groups = thread().groups;
  while (static_cast<int>(groups.size()) > left + 1) {  // the last is still open
    for (const Work& work : groups.front()) work();
    groups.erase(groups.begin());
  }
}

void on_new_cluster(Work work) { works_before().push_back(std::move(work)); }
void on_end_of_cluster(Work work) { works_after().push_back(std::move(work)); }

void run_cluster(int first, int blocks, int thread_count, const Work& kernel) {
  if (thread_count % 32 != 0) fail("a block of part of a warp");
  body = &kernel;
  cluster.resize(blocks);
  for (int i = 0; i < blocks; ++i) prepare(cluster[i], first + i, thread_count);
  rank = 0;
  std::memset(shared, 0xff, sizeof(shared));
  late.clear();
  for (const Work& work : works_before()) work();
  for (bool is_busy = true; is_busy;) {
    is_busy = false;
    for (int i = 0; i < blocks; ++i) is_busy |= run_block(settings.last_warp_first ? blocks - 1 - i : i);
    if (is_busy || late.empty()) continue;
    const Work work = late.front();
    late.pop_front();
    work();
    is_busy = true;
  }
  require_that_all_are_done();
  for (const Work& work : works_after()) work();
}

}  // namespace emulator
