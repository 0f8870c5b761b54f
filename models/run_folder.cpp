#include "models/run_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <string_view>
#include <utility>

#include "autograd/error.h"

namespace sinkhorn {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view extension = ".safetensors";

/// The step of a checkpoint's name, or nothing for any other name.
std::optional<std::int64_t> step_of(std::string_view name) {
  constexpr std::string_view prefix = "step-";
  if (!name.starts_with(prefix) || !name.ends_with(extension)) return std::nullopt;
  std::int64_t step = -1;
  const char* const end = name.data() + name.size() - extension.size();
  const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, step);
  if (error != std::errc{} || stop != end || step < 0 || name != RunFolder::step_name(step)) return std::nullopt;
  return step;
}

/// The steps of the checkpoints in `folder`, the newest first; -1 with errno.
int list_steps(const fs::path& folder, FileSystem& files, std::vector<std::int64_t>& steps) {
  std::vector<std::string> names;
  if (files.list(folder.string(), names) != 0) return -1;
  for (const std::string& name : names)
    if (const auto step = step_of(name)) steps.push_back(*step);
  std::sort(steps.rbegin(), steps.rend());
  return 0;
}

/// As newest_checkpoint; `damaged` takes the steps passed over.
NewestCheckpoint find_newest(const fs::path& folder, FileSystem& files, std::set<std::int64_t>& damaged) {
  std::vector<std::int64_t> steps;
  if (list_steps(folder, files, steps) != 0) fail_file("list the folder", folder, errno);
  NewestCheckpoint found;
  for (const std::int64_t step : steps) {
    const fs::path path = folder / RunFolder::step_name(step);
    try {
      found.checkpoint = {step, path, read_checkpoint(path, files)};
      break;
    } catch (const DataError& error) {
      found.skipped.emplace_back(error.what());
      damaged.insert(step);
    }
  }
  return found;
}

/// The process id in the lock file, or "another one" where its holder has not written it yet.
std::string holder(int lock, FileSystem& files) {
  std::array<char, 24> text;
  const ssize_t size = files.read(lock, std::as_writable_bytes(std::span(text)));
  const std::string_view digits(text.data(), size > 0 ? static_cast<std::size_t>(size) : 0);
  const auto end = digits.find_first_not_of("0123456789");
  return end == 0 || digits.empty() ? "another one" : std::string(digits.substr(0, end));
}

}  // namespace

NewestCheckpoint newest_checkpoint(const fs::path& folder, FileSystem& files) {
  std::set<std::int64_t> damaged;
  return find_newest(folder, files, damaged);
}

safetensors::File read_checkpoint(const fs::path& path, FileSystem& files) {
  safetensors::File file = safetensors::read(path, files);
  safetensors::verify(file);
  return file;
}

RunFolder::RunFolder(fs::path folder, FileSystem& files)
    : folder_((make_folder_durably(folder, files), std::move(folder))),
      files_(files),
      lock_(files, folder_ / lock_name, O_RDWR | O_CREAT, 0666) {
  if (!lock_) fail_file("use the folder", folder_, errno);
  if (files_.lock(lock_.get()) != 0) {
    if (errno != EWOULDBLOCK) fail_file("lock the folder", folder_, errno);
    fail<DataError>("the folder ", folder_.string(), " is in use by process ", holder(lock_.get(), files_),
                    ": wait for it to end, stop it, or choose another folder");
  }
  // Who holds it is only told to those who are refused, so a failure to write it harms no one.
  const std::string pid = std::to_string(::getpid()) + "\n";
  if (files_.truncate(lock_.get()) == 0) [[maybe_unused]]
    const ssize_t told = files_.write(lock_.get(), std::as_bytes(std::span(pid)));

  std::vector<std::string> names;
  if (files_.list(folder_.string(), names) != 0) fail_file("list the folder", folder_, errno);
  for (const std::string& name : names)
    if (is_temporary(name, std::string(extension))) files_.unlink((folder_ / name).string());
}

void RunFolder::save(std::int64_t step, safetensors::Metadata metadata, std::span<const safetensors::Item> items) {
  write(step_name(step), step, std::move(metadata), items);
  damaged_.erase(step);
  prune(step);
}

void RunFolder::save_best(std::int64_t step, safetensors::Metadata metadata, std::span<const safetensors::Item> items) {
  write(best_name, step, std::move(metadata), items);
}

void RunFolder::write(const std::string& name, std::int64_t step, safetensors::Metadata metadata,
                      std::span<const safetensors::Item> items) {
  if (step < 0) fail("cannot save step ", step, ": steps count from 0");
  metadata["step"] = std::to_string(step);
  safetensors::write(folder_ / name, safetensors::with_digests(std::move(metadata), items), items, files_);
}

/// Failures are left for the next save to repair: the new checkpoint is safe, and too many are better than too few.
void RunFolder::prune(std::int64_t saved) {
  std::vector<std::int64_t> steps;
  if (list_steps(folder_, files_, steps) != 0) return;
  int good = 0;
  for (const std::int64_t step : steps)
    if (step <= saved && !damaged_.contains(step) && ++good > kept) files_.unlink((folder_ / step_name(step)).string());
}

NewestCheckpoint RunFolder::newest() { return find_newest(folder_, files_, damaged_); }

std::string RunFolder::step_name(std::int64_t step) {
  char name[48];
  std::snprintf(name, sizeof name, "step-%06lld%s", static_cast<long long>(step), extension.data());
  return name;
}

}  // namespace sinkhorn
