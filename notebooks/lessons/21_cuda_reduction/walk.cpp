#include <cmath>

#include "autograd/ops/softmax.h"
#include "notebooks/kit/grid.h"
#include "notebooks/kit/lesson.h"
#include "notebooks/lessons/21_cuda_reduction/kernels.h"

namespace sinkhorn::lessons::lesson_21_cuda_reduction {
namespace {

constexpr auto kKernels = "notebooks/lessons/21_cuda_reduction/kernels.h";

using emulator::Array;
using emulator::Counters;

std::string digits(double x) { return fmt::format("{:.6f}", x); }

// The sum in f32 by halving: the upper half is added to the lower half until one is left.
float tree_sum(std::vector<float> x) {
  for (std::size_t half = x.size() / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}

void show_order(Page& page) {
  page.step("One number from many");
  page.text(
      "In the last lesson no thread needed another. A sum does: somewhere all elements must meet in one number. An "
      "operation that makes one number of many is a reduction: a sum, a maximum, a norm, a softmax's "
      "denominator.\n\nThe obvious way is that every thread adds its element to one variable, atomically, so that no "
      "addition is lost. Then the order is the order in which the threads happen to arrive. And in f32 the order "
      "matters, because every addition rounds. Here are the same 1024 numbers in three orders:");
  const std::vector<float> x = random_floats(Rng(21), 1024, -100, 100);
  float forward = 0, backward = 0;
  double exact = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    forward += x[i];
    backward += x[x.size() - 1 - i];
    exact += double(x[i]);
  }
  page.picture(drawing::table(page.style(), {"order", "sum in f32", "error"},
                              {{"first to last", digits(forward), drawing::number(forward - exact, 2)},
                               {"last to first", digits(backward), drawing::number(backward - exact, 2)},
                               {"as a tree", digits(tree_sum(x)), drawing::number(tree_sum(x) - exact, 2)},
                               {"in f64", digits(exact), ""}}));
  page.text(
      "None is wrong. But a training run whose bits change from run to run cannot be debugged, and this library "
      "promises equal bits. So there are no float atomics here: the order is fixed by the shape. The tree is the "
      "order to have. Its ten levels replace a chain of 1023 additions, and its rounding errors grow with 10, not "
      "with 1023.");
}

void show_tree(Page& page) {
  page.step("Shared memory and barriers");
  page.text(
      "Threads of one block have a place to meet: shared memory, some tens of kilobytes on the chip, about as fast "
      "as registers and gone when the block ends. All threads of the block see the same words. Nothing says who is "
      "first, though. What one thread writes, another may read only after a barrier: t.sync() lets nobody go on "
      "until all threads of the block have come.");
  page.code(kKernels, "struct TreeSum {");
  constexpr int kCount = 8;
  const Array<float> x(std::vector<float>{3, 1, 4, 1, 5, 9, 2, 6}), y(std::int64_t(4 * kCount));
  counted("tree_steps", 1, 32, kCount * 4, TreeSteps{kCount, x.on_device(), y.on_device()});
  const std::vector<float> steps = y.to_host();
  std::vector<std::vector<std::string>> rows;
  std::vector<std::string> header = {"step"};
  for (std::size_t step = 0, left = kCount; left > 0; ++step, left /= 2) {
    std::vector<std::string> row = {std::to_string(step)};
    for (std::size_t i = 0; i < left; ++i) row.push_back(drawing::number(steps[step * kCount + i]));
    rows.push_back(row);
  }
  for (int i = 0; i < kCount; ++i) header.push_back("s[" + std::to_string(i) + "]");
  page.text("Eight elements, and what is still of interest after each step:");
  page.picture(drawing::table(page.style(), header, rows));
}

void show_faults(Page& page) {
  const Array<float> x(random_floats(Rng(22), 256)), y(std::int64_t(8));
  page.step("A race");
  page.text(
      "Move the barrier behind the loop. It looks harmless: each thread still adds the right two numbers. But now "
      "nobody waits for the thread that makes the second of them. That is a race: two threads, one word, no barrier "
      "in between, and at least one of them writes. On a GPU the result depends on who is faster, and is often "
      "right. The emulated grid remembers for each word who touched it since the last barrier:");
  page.picture(
      fault_lines(page.style(), fault_of("racing_sum", 1, 64, 64 * 4, RacingSum{x.on_device(), y.on_device()})));
  page.text(
      "Thread 0 had gone through all its steps, and in the last one it read s[1]. Thread 1 writes s[1] in its first "
      "step. Whether thread 0 saw the old or the new number is anybody's guess; here it saw the old one.");

  page.step("A barrier that not all reach");
  page.text(
      "The opposite mistake is a barrier inside the `if`. The threads that do not take it never come, and those that "
      "do wait. A GPU hangs there, or worse, goes on. The emulated grid says where each of them is:");
  page.picture(
      fault_lines(page.style(), fault_of("branching_sum", 1, 64, 64 * 4, BranchingSum{x.on_device(), y.on_device()})));
  page.text("A barrier belongs where all threads of the block pass, the idle ones too.");
}

void show_shuffles(Page& page) {
  page.step("A warp needs no barrier");
  page.text(
      "The lanes of a warp run together anyway. They can pass registers to each other: t.shuffle_xor(x, mask) gives "
      "each lane the x of the lane whose number differs in the bits of the mask. With masks 16, 8, 4, 2, 1 the sum "
      "of all 32 lanes is there after five shuffles, in every lane. Among eight lanes three masks do:");
  std::vector<float> x(32, 0.0f);
  for (std::size_t i = 0; i < 8; ++i) x[i] = std::vector<float>{3, 1, 4, 1, 5, 9, 2, 6}[i];
  const Array<float> in(x), out(std::int64_t(4 * 32));
  counted("butterfly", 1, 32, 0, ButterflySteps{8, in.on_device(), out.on_device()});
  const std::vector<float> held = out.to_host();
  std::vector<std::vector<std::string>> rows;
  for (std::size_t step = 0; step < 4; ++step) {
    std::vector<std::string> row = {step == 0 ? "before" : "mask " + std::to_string(8 >> step)};
    for (std::size_t lane = 0; lane < 8; ++lane) row.push_back(drawing::number(held[step * 32 + lane]));
    rows.push_back(row);
  }
  page.picture(drawing::table(
      page.style(), {"", "lane 0", "lane 1", "lane 2", "lane 3", "lane 4", "lane 5", "lane 6", "lane 7"}, rows));
  page.text("Drawn as lines the partners cross like wings, hence its name: butterfly. In the library:");
  page.code("cuda/reduce.h", "SINKHORN_DEVICE R reduce_warp(");
}

void show_block(Page& page) {
  page.step("Warps first, then the block");
  page.text(
      "Put together: each warp combines its lanes by shuffles, one lane a warp writes to shared memory, one barrier, "
      "and what is left is one number a warp. What that saves, counted for one block of 256 threads:");
  const Array<float> x(random_floats(Rng(23), 256)), y(std::int64_t(8));
  const Counters tree = counted("tree_sum", 1, 256, 1024, TreeSum{x.on_device(), y.on_device()});
  const Counters warps = counted("warps_then_block", 1, 256, 1024, WarpsThenBlock{x.on_device(), y.on_device()});
  const auto row = [](const std::string& name, const Counters& c) {
    return std::vector<std::string>{name, std::to_string(c.barriers), std::to_string(c.shared_reads.accesses),
                                    std::to_string(c.shared_writes.accesses), std::to_string(c.shuffles)};
  };
  page.picture(drawing::table(page.style(), {"", "barriers", "shared reads", "shared writes", "shuffles"},
                              {row("tree in shared memory", tree), row("warps, then the block", warps)}));
  page.text("The library's version gives the result to all threads, since most callers go on with it:");
  page.code("cuda/reduce.h", "SINKHORN_DEVICE R operator()(R x, Combine combine) const");
  page.text("Its second barrier is the one that people forget. Without it, two sums after each other:");
  page.picture(fault_lines(page.style(), fault_of("sum_twice", 1, 64, 64, SumTwice{x.on_device(), y.on_device()})));
  page.text(
      "A fast warp writes its part of the second sum while a slow one still reads the first. A word that changes "
      "hands needs a barrier in both directions: before the read, and before the next write.");
}

void show_rows(Page& page) {
  page.step("Rows of any width");
  page.text(
      "Rows are seldom as wide as a block. Each thread first combines its own columns, k, k + size, ..., in a local "
      "variable. A thread without a column still takes part in every shuffle and barrier; it holds the number that "
      "changes nothing. For a sum that is 0. For a maximum it is minus infinity, not 0: the scores of a row may all "
      "be negative. Softmax needs both reductions, and the library has them in one function:");
  page.code("cuda/reduce.h", "SINKHORN_DEVICE Exponentials<R> exponentials(");

  page.step("Transposing, as promised");
  page.text(
      "Lesson 20 left a transpose that read rows and wrote columns, with 4.5 times the sectors it needed. Shared "
      "memory has no sectors. So a block fetches a tile of 32 x 32 by rows, waits, and writes it by rows too: the "
      "corner is turned inside.");
  page.code(kKernels, "struct TransposeTiles {");
  constexpr std::int64_t kSize = 64;
  const Array<float> x(random_floats(Rng(24), kSize * kSize)), y(kSize * kSize);
  const Counters c = counted("transpose", kSize / 32 * (kSize / 32), 32, 32 * 33 * 4,
                             TransposeTiles{kSize, x.on_device(), y.on_device()});
  page.text(
      "A 64 x 64 matrix: {} sectors, which is the least that {} reads and {} writes can do. One oddity: rows of the "
      "tile are 33 words apart. Shared memory has 32 banks, word w lies in bank w mod 32, and a bank serves one word "
      "at a time. A column of a tile 32 wide would lie in one bank; with 33 its words lie in 32 different ones.",
      c.sectors, c.global_reads.accesses, c.global_writes.accesses);
}

}  // namespace

void walk(Page& page) {
  show_order(page);
  show_tree(page);
  show_faults(page);
  show_shuffles(page);
  show_block(page);
  show_rows(page);

  page.step("Your turn");
  page.text(
      "Write RowSums and SoftmaxRows, one block a row. The file as it stands has a race, a barrier that some threads "
      "miss, and a softmax in which threads know nothing of each other.\n\nThe checks use 1 to 8 warps, rows "
      "narrower and wider than the block, and scores around -1000 and 1000. They compare with the library, and they "
      "count: at most two barriers a reduction, one shared write a warp (and one more), each element read once for "
      "the sums and three times for softmax, sectors at the coalesced minimum.");
}

Quiz quiz(Rng rng) {
  const std::int64_t log_threads = whole(rng.split(0), 6, 8), threads = std::int64_t(1) << log_threads;
  const std::int64_t lane = whole(rng.split(1), 1, 31), mask = std::int64_t(1) << whole(rng.split(2), 1, 4);
  const std::int64_t warps = whole(rng.split(3), 2, 8), width = whole(rng.split(4), 70, 200);
  const Array<float> x(random_floats(rng.split(5), threads)), y(std::int64_t(1));
  const Counters tree =
      counted("tree_sum", 1, int(threads), std::size_t(threads) * 4, TreeSum{x.on_device(), y.on_device()});
  return {
      Question::about_number(
          fmt::format("A block of {} threads sums as a tree in shared memory: one barrier after the elements are "
                      "written, and one after each halving. How many barriers is that?",
                      threads),
          double(tree.barriers), fmt::format("1 + log2({}), as the emulated grid counts", threads), 0),
      Question::about_number(fmt::format("In t.shuffle_xor(x, {}), whose value does lane {} get?", mask, lane),
                             double(lane ^ mask), "the lane whose number differs in the bits of the mask", 0),
      Question::about_number(
          fmt::format("{} warps reduce over the block: each warp by shuffles, then its lane 0 writes one f32. How many "
                      "bytes of shared memory does that take, at least?",
                      warps),
          double(warps * 4), "one f32 a warp", 0),
      Question::about_number(
          fmt::format(
              "A block of 64 threads sums a row of {} elements, thread k taking k, k + 64, ... How many elements "
              "does thread {} add up?",
              width, lane),
          double(cuda::pieces(width - lane, 64)), "the numbers k, k + 64, .. below the width", 0),
      Question::with_choices(
          "Two reductions use the same words of shared memory one after the other. Why must there be a barrier "
          "between them?",
          {"A fast warp could write the second's numbers while a slow one still reads the first's",
           "The first result would be lost, because shared memory is cleared",
           "Shuffles do not work twice without a barrier", "There need not be one: each warp has words of its own"},
          "each thread reads the words of all warps, so a word may change only after all have read"),
      Question::with_choices("Why does this library not sum with atomic additions?",
                             {"The order, and with it the last bits, would change from run to run",
                              "Atomic additions lose some of the terms", "GPUs have no atomic additions for f32",
                              "Atomics need more memory than a tree"},
                             "f32 addition rounds, so it depends on the order; atomics take it as it comes"),
  };
}

}  // namespace sinkhorn::lessons::lesson_21_cuda_reduction
