// Errors: one exception type per documented exit code, each message a single line that says what to do next.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace sinkhorn {

/// An operation was used wrongly or failed: names the operation, what was expected and what came.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};
/// A flag or a configuration value is wrong (exit code 2).
struct UsageError : Error {
  using Error::Error;
};
/// Data, a checkpoint or an output folder cannot be used (exit code 3).
struct DataError : Error {
  using Error::Error;
};
/// Memory ran out (exit code 4).
struct OutOfMemory : Error {
  using Error::Error;
};
/// A loss or a gradient is NaN or infinite (exit code 5).
struct NonFinite : Error {
  using Error::Error;
};
/// The device asked for cannot be used (exit code 6).
struct DeviceError : Error {
  using Error::Error;
};

/// The parts as << writes them, joined: text_of(x.shape(), " ", x.dtype()).
template <class... Parts>
std::string text_of(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

/// Throws `Kind` with the parts joined: fail("matmul: lhs ", a.shape(), " does not fit rhs ", b.shape()).
template <class Kind = Error, class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Kind(text_of(parts...));
}

}  // namespace sinkhorn
