#include <algorithm>
#include <cmath>

#include "autograd/ops/elementwise.h"
#include "notebooks/kit/grid.h"
#include "notebooks/kit/lesson.h"
#include "notebooks/lessons/20_cuda_threads/kernels.h"

namespace sinkhorn::lessons::lesson_20_cuda_threads {
namespace {

constexpr auto kKernels = "notebooks/lessons/20_cuda_threads/kernels.h";

using emulator::Array;
using emulator::Counters;

std::int64_t strided_sectors(std::int64_t stride) {
  const Array<float> x(32 * stride, 0.0f);
  return counted("strided", 1, 32, 0, Strided{stride, x.on_device()}).sectors;
}

void show_threads(Page& page) {
  page.step("A function, run by thousands");
  page.text(
      "A CPU has a few fast cores, and a loop goes over the elements. A GPU has tens of thousands of slow threads "
      "and no outer loop: all of them run the same function, and each first asks who it is. Such a function is a "
      "kernel. In this house it is a struct: its members are its arguments, its operator() is what one thread does.");
  page.code(kKernels, "struct WhoAmI");
  page.text(
      "Threads come in blocks, all of one size. 32 threads of a block that stand side by side are a warp, and a "
      "thread's place in its warp is its lane. Here are 2 blocks of 64 threads; each thread wrote down its own line:");
  const Array<std::int32_t> y(std::int64_t(2 * 64 * 4));
  counted("who_am_i", 2, 64, 0, WhoAmI{y.on_device()});
  const std::vector<std::int32_t> who = y.to_host();
  std::vector<std::vector<std::string>> rows;
  for (const std::size_t g : {0, 1, 31, 32, 63, 64, 65, 127}) {
    std::vector<std::string> row = {std::to_string(g)};
    for (std::size_t k = 0; k < 4; ++k) row.push_back(std::to_string(who[g * 4 + k]));
    rows.push_back(row);
  }
  page.picture(drawing::table(page.style(), {"of all", "block", "index", "warp", "lane"}, rows));
  page.text(
      "Nothing here needs a GPU. The emulated grid runs every thread as a fiber on the CPU, watches each access, and "
      "counts. The same source, compiled by nvcc, runs on the real thing.");
}

void show_map(Page& page) {
  page.step("One element a thread");
  page.text(
      "The simplest kernel is a map: y_i = f(x_i), and no element has to do with another. Thread number block * size "
      "+ index takes the element of that number. f is the library's own GELU:");
  page.code(kKernels, "struct Gelu {");
  constexpr std::int64_t kCount = 100;
  const std::vector<float> x = random_floats(Rng(20), kCount);
  const Array<float> in(x), out(kCount);
  const Counters c = counted("gelu", cuda::pieces(kCount, 64), 64, 0, Gelu{kCount, in.on_device(), out.on_device()});
  const std::vector<double> want = gelu(Var(Tensor::from(x, {kCount}))).value.to_vector();
  double largest = 0;
  for (std::size_t i = 0; i < want.size(); ++i) largest = std::max(largest, std::abs(want[i] - out.to_host()[i]));
  page.text(
      "{} elements in blocks of 64: one block is too few, so it takes ceil({} / 64) = {}. That makes {} threads, and "
      "{} of them have nothing to do. The last block is ragged:",
      kCount, kCount, c.blocks, c.threads, c.threads - kCount);
  std::vector<std::pair<std::string, double>> lanes;
  lanes.reserve(4);
  for (std::int64_t warp = 0; warp < 4; ++warp)
    lanes.emplace_back(fmt::format("block {} warp {}: lanes at work", warp / 2, warp % 2),
                       double(std::clamp<std::int64_t>(kCount - 32 * warp, 0, 32)));
  page.picture(drawing::bars(page.style(), lanes));
  page.text("Counted: {} reads, {} writes. Largest distance to the library's gelu on the CPU: {}.",
            c.global_reads.accesses, c.global_writes.accesses, drawing::number(largest, 3));

  page.step("Without the guard");
  page.text(
      "Take away `if (i < count)`, and the {} idle threads write behind the end. On a GPU that may go unnoticed: the "
      "bytes belong to some other tensor, which is now wrong, and what breaks is another kernel much later. The "
      "emulated grid knows where each buffer ends. It stops at the first bad access and says whose it was:",
      c.threads - kCount);
  const Array<float> short_in(x), short_out(kCount);
  page.picture(fault_lines(page.style(),
                           fault_of("gelu", 2, 64, 0, GeluWithoutGuard{short_in.on_device(), short_out.on_device()})));
  page.text(
      "Read it from the end: the buffer has {} bytes, that is {} floats of 4. Byte {} is where element {} would "
      "begin. Block 1 starts at element 64, and 64 + {} = {}.",
      kCount * 4, kCount, kCount * 4, kCount, kCount - 64, kCount);
}

Tensor owners(bool interleaved, std::int64_t count) {
  const Array<float> y(count, 0.0f);
  if (interleaved)
    counted("owner", 1, 32, 0, Owner<true>{count, y.on_device()});
  else
    counted("owner", 1, 32, 0, Owner<false>{count, y.on_device()});
  std::vector<double> cells;
  for (const float thread : y.to_host()) cells.push_back(thread);
  return Tensor::from(cells, {count / 32, 32});
}

void show_strides(Page& page) {
  page.step("More elements than threads");
  page.text(
      "A grid need not be as large as the data. A thread that is done goes on to another element. On a CPU one would "
      "give each thread a stretch of its own. With 32 threads and 128 elements that looks so; memory runs from left "
      "to right and from line to line, and a darker cell has a higher thread number:");
  page.picture(drawing::heat_map(page.style(), owners(false, 128), {.low = 0, .high = 31}));
  page.text(
      "Kernels do it the other way. Thread k takes k, then k + 32, then k + 64: it goes on by the number of all "
      "threads. This is the grid-stride loop. It is right for any count and any grid, and the guard is its condition:");
  page.picture(drawing::heat_map(page.style(), owners(true, 128), {.low = 0, .high = 31}));
  page.text(
      "Both write each element once. But at one moment, when all lanes do their first access, the first way touches "
      "every fourth element, the second way 32 neighbours. The next step shows why that matters.");
}

void show_sectors(Page& page) {
  page.step("Memory comes in sectors");
  page.text(
      "The lanes of a warp run one instruction together, so a read is 32 reads at once. A GPU serves them as one "
      "request and fetches whole sectors of 32 bytes: 8 floats. Whatever else is in a sector comes along, wanted or "
      "not. If lane k reads element k * stride:");
  std::vector<std::pair<std::string, double>> bars;
  for (const std::int64_t stride : {1, 2, 4, 8, 16})
    bars.emplace_back(fmt::format("stride {}: sectors", stride), double(strided_sectors(stride)));
  page.picture(drawing::bars(page.style(), bars));
  page.text(
      "From stride 8 on each lane has a sector of its own: 1024 bytes move so that 128 are used. Requests that need "
      "few sectors are called coalesced. The same copy of 4096 floats, cut in the two ways of the step before, and a "
      "64 x 64 matrix copied by rows, by columns, and transposed:");
  constexpr std::int64_t kSize = 64, kCount = kSize * kSize;
  const Array<float> x(random_floats(Rng(21), kCount)), y(kCount);
  const std::pair<std::string, Counters> runs[] = {
      {"neighbours", counted("copy", 1, 256, 0, Interleaved{kCount, x.on_device(), y.on_device()})},
      {"a stretch each", counted("copy", 1, 256, 0, Chunked{kCount, x.on_device(), y.on_device()})},
      {"by rows", counted("copy", kSize, 64, 0, CopyRows{kSize, x.on_device(), y.on_device()})},
      {"by columns", counted("copy", kSize, 64, 0, CopyColumns{kSize, x.on_device(), y.on_device()})},
      {"transposed", counted("transpose", kSize, 64, 0, Transpose{kSize, x.on_device(), y.on_device()})}};
  std::vector<std::pair<std::string, double>> sectors;
  for (const auto& [name, c] : runs) sectors.emplace_back(name, double(c.sectors));
  page.picture(drawing::bars(page.style(), sectors));
  page.text(
      "All five make {} reads and {} writes. The first and the third move exactly what they use, {} bytes. Columns "
      "move {} times as much. A copy does nothing but move, so where the data are too large for the caches it takes "
      "up to that much longer. Transposing reads rows but writes columns. Lesson 21 has the memory that helps it out "
      "of that.",
      runs[0].second.global_reads.accesses, runs[0].second.global_writes.accesses, runs[0].second.sectors * 32,
      drawing::number(double(runs[3].second.sectors) / double(runs[2].second.sectors), 3));
}

}  // namespace

void walk(Page& page) {
  show_threads(page);
  show_map(page);
  show_strides(page);
  show_sectors(page);

  page.step("One warp, one instruction");
  page.text(
      "Lanes that run together cannot part. Where some take an `if` and others do not, the warp runs both sides, "
      "with the other lanes switched off. A ragged tail costs nothing by that: at most one warp of a map is split. "
      "An `if` that halves every warp doubles the work in it. So branch by block or by warp where you can.\n\nHow "
      "the library's own maps look: a function of one element. map_elements makes the blocks, the loop and the guard, "
      "and lets each thread ask for 16 bytes at once: fewer requests for the same sectors.");
  page.code("cuda/elementwise.cu", "struct Affine {");
  page.text("Kernels that work on rows give each row a block. This one is the gradient of softmax from lesson 6:");
  page.code("cuda/softmax.cu", "struct SoftmaxRowsGradient");
  page.text("reduce.sum adds one number of each thread of the block. How that is done is lesson 21.");

  page.step("Your turn");
  page.text(
      "Write two kernels. ScaleAndAdd is y = a x + b, for any grid. GatherRows copies rows picked by index, one "
      "block a row, with zeros where the pick is -1. That is how routing moves buckets in the Sinkhorn "
      "transformer.\n\nThe checks run both on grids that are too small and too large, and on widths that are no "
      "multiple of anything. They compare values, and they count: elements read and written exactly, sectors at the "
      "coalesced minimum.");
}

Quiz quiz(Rng rng) {
  const std::int64_t count = whole(rng.split(0), 1000, 9000) * 10 + 7, size = 32 * whole(rng.split(1), 2, 8);
  const std::int64_t blocks = whole(rng.split(2), 3, 9), threads = 32 * whole(rng.split(3), 1, 4),
                     element = whole(rng.split(4), 2000, 9999);
  const std::int64_t stride = whole(rng.split(5), 2, 7);
  const std::int64_t owner = element % (blocks * threads), owner_block = owner / threads;
  return {
      Question::about_number(
          fmt::format("A map gives each thread one element. There are {} elements and blocks of {} threads. How many "
                      "blocks are launched?",
                      count, size),
          double(cuda::pieces(count, size)), "the count over the block's size, rounded up", 0),
      Question::about_number(
          fmt::format("{} elements, one a thread, in as few blocks of {} threads as will do. How many threads have no "
                      "element?",
                      count, size),
          double(cuda::pieces(count, size) * size - count), "blocks times size, less the count", 0),
      Question::about_number(
          fmt::format("A grid-stride loop runs on {} blocks of {} threads. In which block is the thread that works on "
                      "element {}?",
                      blocks, threads, element),
          double(owner_block),
          fmt::format("element {} belongs to thread {} mod {} = {}, and {} threads are a block", element, element,
                      blocks * threads, owner, threads),
          0),
      Question::about_number(
          fmt::format(
              "Lane k of a warp reads the f32 at k * {}, from the beginning of a buffer. How many sectors of 32 "
              "bytes is that?",
              stride),
          double(strided_sectors(stride)),
          fmt::format("the last lane reads bytes {} .. {}, and with a stride below 8 no sector in between is left out",
                      31 * stride * 4, 31 * stride * 4 + 3),
          0),
      Question::with_choices("What does a real GPU do when a thread writes one element behind its buffer?",
                             {"Often nothing that you see: some other tensor is wrong from then on",
                              "It ignores the write, since the thread has no element",
                              "It always stops the kernel and names the thread", "It makes the buffer longer"},
                             "only an address that belongs to nobody is an error there; that is why the emulated "
                             "grid checks each one"),
      Question::with_choices("A matrix lies row after row. Which element should lane 1 read when lane 0 reads (r, c)?",
                             {"(r, c + 1)", "(r + 1, c)", "(r, c)", "(r + 1, c + 1)"},
                             "neighbours in memory share sectors, and within a row neighbours are columns"),
  };
}

}  // namespace sinkhorn::lessons::lesson_20_cuda_threads
