#include <algorithm>
#include <cmath>

#include "autograd/ops/matmul.h"
#include "notebooks/kit/grid.h"
#include "notebooks/kit/lesson.h"
#include "notebooks/lessons/22_cuda_matmul/kernels.h"

namespace sinkhorn::lessons::lesson_22_cuda_matmul {
namespace {

constexpr auto kKernels = "notebooks/lessons/22_cuda_matmul/kernels.h";

using emulator::Array;
using emulator::Counters;

// What an H100 (SXM) can do, from its data sheet: bytes and operations a second.
constexpr double kBandwidth = 3.35e12, kF32 = 67e12, kTensorBf16 = 990e12;

// What one product of (n, n) matrices read, and how far it is from the library's.
struct Measured {
  Counters counters;
  double distance;
};
constexpr std::int64_t kSize = 64;

template <class Kernel>
Measured measure(const std::string& op, std::int64_t blocks, int threads, std::size_t shared_bytes) {
  const Tensor a = uniform(Rng(1), {kSize, kSize}, -1, 1), b = uniform(Rng(2), {kSize, kSize}, -1, 1);
  const Array<float> lhs(random_floats(Rng(1), a.count(), -1, 1)), rhs(random_floats(Rng(2), b.count(), -1, 1));
  const Array<float> out(kSize * kSize);
  const Counters c = counted(op, blocks, threads, shared_bytes,
                             Kernel{kSize, kSize, kSize, lhs.on_device(), rhs.on_device(), out.on_device()});
  const std::vector<double> want = matmul(Var(a), Var(b)).value.to_vector();
  const std::vector<float> got = out.to_host();
  double distance = 0;
  for (std::size_t i = 0; i < want.size(); ++i) distance = std::max(distance, std::abs(want[i] - double(got[i])));
  return {c, distance};
}

template <int kTile>
Measured measure_tiled() {
  using Kernel = TiledMatmul<kTile>;
  const std::int64_t tiles = kSize / kTile;
  return measure<Kernel>("tiled_matmul", tiles * tiles, Kernel::kThreads, Kernel::kSharedBytes);
}

void show_naive(Page& page, const Measured& naive) {
  page.step("The product, plainly");
  page.text(
      "C = A B: element (row, column) of C is a row of A times a column of B. Nearly all arithmetic of a transformer "
      "is of this kind. One thread an element is a kernel of five lines:");
  page.code(kKernels, "struct NaiveMatmul {");
  page.text(
      "On 64 x 64 matrices it agrees with the library's matmul to {}. A and B have {} elements each. Counted reads: "
      "{}. So each element is fetched {} times: once for every element of C that it is part of.",
      drawing::number(naive.distance, 2), kSize * kSize, naive.counters.global_reads.accesses,
      naive.counters.global_reads.accesses / (2 * kSize * kSize));
}

void show_roofline(Page& page) {
  page.step("Is it memory or arithmetic?");
  page.text(
      "Divide the operations by the bytes that move: that is a kernel's arithmetic intensity. Here every "
      "multiply-add, two operations, reads two floats, 8 bytes: 0.25 operations a byte. Now the other side. By its "
      "data sheet an H100 moves {} TB/s, and does {} TFLOP/s in f32. It can be busy with arithmetic only if there "
      "are {} operations for each byte. Below that, memory sets the speed:\n\n  speed = min(peak, intensity * "
      "bandwidth)",
      kBandwidth / 1e12, kF32 / 1e12, kF32 / kBandwidth);
  std::vector<double> roof;
  roof.reserve(64);
  for (int i = 0; i < 64; ++i) {
    const double intensity = std::exp2(-2 + i / 7.0);
    roof.push_back(std::log10(std::min(kF32, intensity * kBandwidth) / 1e12));
  }
  page.text(
      "Drawn with logarithms on both axes (from 0.25 to {:.0f} operations a byte; the side shows log10 of TFLOP/s) "
      "it looks like a roof, and is called the roofline:",
      std::exp2(-2 + 63 / 7.0));
  page.picture(drawing::curve(page.style(), roof, 8));
  page.text(
      "The naive product stands at the left end: {:.2f} TFLOP/s, {:.1f} % of the peak, if every read went to memory. "
      "(Caches soften that. But a cache guesses what will be needed again, and the programmer knows.)",
      0.25 * kBandwidth / 1e12, 100 * 0.25 * kBandwidth / kF32);
}

// The tiles that one tile of C needs, as letters.
std::string band_picture() {
  constexpr int kTiles = 4, kRow = 2, kColumn = 1;
  std::string lines;
  const auto row = [&](const std::string& left, const std::string& right) {
    std::string line = "  " + drawing::pad_right(left, 14) + right;
    line.erase(line.find_last_not_of(' ') + 1);
    lines += line + "\n";
  };
  for (int r = 0; r < kTiles; ++r) {
    std::string cells = r == 0 ? "B  " : "   ";
    for (int c = 0; c < kTiles; ++c) cells += c == kColumn ? "b " : ". ";
    row("", cells);
  }
  row("", "");
  for (int r = 0; r < kTiles; ++r) {
    std::string left = r == 0 ? "A  " : "   ", right = r == 0 ? "C  " : "   ";
    for (int c = 0; c < kTiles; ++c) {
      left += r == kRow ? "a " : ". ";
      right += r == kRow && c == kColumn ? "C " : ". ";
    }
    row(left, right);
  }
  return lines;
}

void show_tiles(Page& page, const Measured& naive) {
  page.step("Tiles");
  page.text(
      "Neighbours in C need the same rows and columns. So let a block make a whole tile of C, T x T. It needs a band "
      "of tiles of A and a band of B. It fetches one pair of them into shared memory, every thread a share; a "
      "barrier; all threads multiply what is there; a barrier, so that nobody overwrites what is still read; and on "
      "to the next pair. Each letter is one tile:");
  page.picture(band_picture());
  page.text(
      "An element that was fetched is now used T times. Reads fall from 2 m n k to 2 m n k / T: each element of A is "
      "read once for every tile along a row of C, each of B once for every tile along a column. Counted for 64 x 64, "
      "barriers and shared reads too:");
  const std::pair<std::string, Measured> tiled[] = {{"naive", naive},
                                                    {"T = 8", measure_tiled<8>()},
                                                    {"T = 16", measure_tiled<16>()},
                                                    {"T = 32", measure_tiled<32>()}};
  std::vector<std::pair<std::string, double>> reads;
  std::vector<std::vector<std::string>> rows;
  for (const auto& [name, m] : tiled) {
    reads.emplace_back(name + ": thousand reads", double(m.counters.global_reads.accesses) / 1000);
    const double intensity = 2.0 * kSize * kSize * kSize / double(m.counters.global_reads.bytes);
    rows.push_back({name, drawing::number(intensity), std::to_string(m.counters.barriers / m.counters.blocks),
                    drawing::number(double(m.counters.shared_reads.accesses) / (kSize * kSize * kSize), 3),
                    drawing::number(100 * std::min(1.0, intensity * kBandwidth / kF32), 3),
                    drawing::number(m.distance, 2)});
  }
  page.picture(drawing::bars(page.style(), reads));
  page.picture(drawing::table(page.style(),
                              {"", "ops a byte", "barriers", "shared reads a multiply", "% of peak", "error"}, rows));
  page.text(
      "The intensity is T / 4. With T = 32 a thread makes four elements of C and keeps what it read of B in a "
      "register for all four: shared memory is read less, too. That is the same idea once more, one level up. Real "
      "kernels go on with it: tiles of 128 x 128 for a block, of which each thread holds 8 x 8 in registers.");

  page.step("Edges");
  page.text(
      "Sizes are seldom multiples of T. At the right and the lower edge of A and B a tile hangs over. What lies "
      "outside must not be read, as lesson 20 showed. But the threads there must stay, for the barriers. They put "
      "zeros into shared memory: a zero adds nothing to a sum. Only elements of C that exist are written. The "
      "library's kernels load in the same way; `place` says where a row begins, or -1:");
  page.code("cuda/bucketed_attention.cu", "SINKHORN_DEVICE void load(const Thread& t");
}

Tensor owners(const Array<float>& grid, std::int64_t columns) {
  return Tensor::from(grid.to_host(), {grid.count() / columns, columns});
}

void show_tensor_cores(Page& page) {
  page.step("Tensor cores");
  page.text(
      "Since 2017 NVIDIA's chips have units that do nothing but small matrix products. One instruction of a warp, "
      "mma.m16n8k16, multiplies A (16 x 16) by B (16 x 8), both bf16 (lesson 24), and adds the product to C (16 x 8) "
      "in f32: {} multiply-adds at once. An H100 does {} TFLOP/s that way, {:.0f} times its ordinary arithmetic; "
      "{:.0f} operations are now needed for each byte.",
      16 * 8 * 16, kTensorBf16 / 1e12, kTensorBf16 / kF32, kTensorBf16 / kBandwidth);
  page.text(
      "The matrices lie in registers, each lane holding its own elements: a fragment. Which ones is fixed by the "
      "hardware, and it is the only hard thing about it. Each cell shows the lane that holds it. A, where every lane "
      "has 8 elements:");
  const Array<float> a(std::int64_t(256)), b(std::int64_t(128)), c(std::int64_t(128));
  counted("fragment_owners", 1, 32, 0, FragmentOwners{a.on_device(), b.on_device(), c.on_device()});
  page.picture(
      drawing::heat_map(page.style(), owners(a, 16), {.low = 0, .high = 31, .row_label = "row", .numbers = true}));
  page.text("And B, 4 elements a lane:");
  page.picture(
      drawing::heat_map(page.style(), owners(b, 8), {.low = 0, .high = 31, .row_label = "row", .numbers = true}));
  page.text(
      "C lies like the left half of A. With g = lane / 4 and q = lane % 4 a lane of A holds rows g and g + 8, and of "
      "those the columns 2q, 2q + 1, 2q + 8, 2q + 9. Of B it holds rows 2q, 2q + 1, 2q + 8, 2q + 9 of column "
      "g.\n\nThe emulated grid has no tensor core, but it has shuffles. Here the lanes pass their fragments around "
      "until each has what its four elements of C need:");
  page.code("notebooks/lessons/22_cuda_matmul/exercise.h", "inline void mma(const Thread& t");
  const Tensor lhs = uniform(Rng(3), {16, 16}, -1, 1, DType::bf16), rhs = uniform(Rng(4), {16, 8}, -1, 1, DType::bf16);
  const auto values_of = [](const Tensor& x) {
    const auto values = x.span<bf16>();
    return std::vector<bf16>(values.begin(), values.end());
  };
  const Array<bf16> left(values_of(lhs)), right(values_of(rhs));
  const Array<float> out(std::int64_t(128));
  const Counters spent = counted("one_mma", 1, 32, 0, OneMma{left.on_device(), right.on_device(), out.on_device()});
  const std::vector<double> want = matmul(Var(lhs.to(DType::f32)), Var(rhs.to(DType::f32))).value.to_vector();
  double distance = 0;
  for (std::size_t i = 0; i < want.size(); ++i)
    distance = std::max(distance, std::abs(want[i] - double(out.to_host()[i])));
  page.text(
      "On random bf16 it agrees with the library's matmul to {}, and took {} shuffles for what a GPU does in one "
      "instruction.",
      drawing::number(distance, 2), spent.shuffles);
}

}  // namespace

void walk(Page& page) {
  const Measured naive = measure<NaiveMatmul>("naive_matmul", kSize * kSize / 256, 256, 0);
  show_naive(page, naive);
  show_roofline(page);
  show_tiles(page, naive);
  show_tensor_cores(page);

  page.step("What the library does");
  page.text(
      "Plain products go to NVIDIA's own library, cuBLAS, which has such kernels for every chip and size (but for "
      "large "
      "ones of f32 on Hopper, which cuda/gpu/planes_gemm.cu makes of f16). What it does not have is a product in the "
      "middle of something else: scores of one bucket against another, at once "
      "made into shares and multiplied by values. There the library tiles by hand, and lesson 23 shows how. Its tile "
      "in shared memory, with the extra column against bank conflicts from lesson 21:");
  page.code("cuda/bucketed_attention.cu", "struct Tile {");

  page.step("Your turn");
  page.text(
      "Write TiledMatmul, with tiles of 16 x 16 for matrices of any size, and MmaMatmul, which loads fragments and "
      "calls mma. The checks compare with the library's matmul. They count: each element read once a tile and never "
      "from outside, two barriers a pair of tiles, sectors as neighbours have them, and one mma for every 16 of k.");
}

Quiz quiz(Rng rng) {
  const std::int64_t tile = std::int64_t(1) << whole(rng.split(0), 3, 5), n = tile * whole(rng.split(1), 2, 72 / tile);
  const std::int64_t tiles = n / tile;
  const std::int64_t row = whole(rng.split(2), 0, 15), column = whole(rng.split(3), 0, 7);
  const double intensity = double(whole(rng.split(4), 2, 18)) / 2, bandwidth = double(whole(rng.split(5), 2, 8)) / 2;
  const double peak = double(whole(rng.split(6), 4, 9)) * 5;
  const Array<float> a(std::int64_t(256)), b(std::int64_t(128)), c(std::int64_t(128));
  counted("fragment_owners", 1, 32, 0, FragmentOwners{a.on_device(), b.on_device(), c.on_device()});
  return {
      Question::about_number(
          fmt::format("Two {} x {} matrices are multiplied naively, one thread an element of C. How many reads from "
                      "global memory is that?",
                      n, n),
          double(2 * n * n * n), "n for a row and n for a column, for each of n * n elements", 0),
      Question::about_number(
          fmt::format("And how many reads if {} x {} matrices are multiplied with tiles of {} x {} in shared memory?",
                      n, n, tile, tile),
          double(2 * n * n * tiles),
          fmt::format("each of the 2 * {0} * {0} elements is read by {0} / {1} = {2} tiles", n, tile, n / tile), 0),
      Question::about_number(
          fmt::format("A chip moves {} TB/s and does {} TFLOP/s. How many TFLOP/s can a kernel of {} operations a byte "
                      "reach?",
                      bandwidth, peak, intensity),
          std::min(peak, bandwidth * intensity), "the smaller of the peak and intensity times bandwidth"),
      Question::about_number(
          fmt::format("In mma.m16n8k16, which lane holds element ({}, {}) of C (16 x 8)?", row, column),
          double(c.to_host()[std::size_t(row * 8 + column)]),
          "lane = 4 g + q, with g the row modulo 8 and q half the column", 0),
      Question::with_choices(
          "What does the second barrier of a tiled product guard, the one after the multiplications?",
          {"That no thread loads the next tile while another still multiplies with this one",
           "That the products are added in the right order", "That C is complete before it is written",
           "That zeros at the edge are not overwritten"},
          "a word of shared memory that changes hands needs a barrier before the next write"),
      Question::with_choices(
          "What do threads do whose element of A lies outside of the matrix?",
          {"They store 0 in shared memory and go on to the barrier", "They return, since they have no work",
           "They skip the barrier", "They load the nearest element that exists"},
          "the barrier is for all threads, and a zero adds nothing to a sum"),
  };
}

}  // namespace sinkhorn::lessons::lesson_22_cuda_matmul
