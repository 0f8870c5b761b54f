// Commands to type next, written so that they can be pasted.
#pragma once
#include <string>
#include <vector>

namespace sinkhorn {

/// A command of this program: hint({"generate", "--prompt", "The "}) is `./run generate --prompt 'The '`. The program's
/// name is the one it was started by, which SINKHORN_PROGRAM holds.
std::string hint(const std::vector<std::string>& arguments);

}  // namespace sinkhorn
