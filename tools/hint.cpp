#include "tools/hint.h"

#include <algorithm>
#include <cstdlib>

namespace sinkhorn {
namespace {

std::string quoted(const std::string& word) {
  const auto plain = [](unsigned char c) {
    return std::isalnum(c) || c >= 0x80 || std::string("-_./=:,+@%").find(char(c)) != std::string::npos;
  };
  if (!word.empty() && std::all_of(word.begin(), word.end(), plain)) return word;
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? "'\\''" : std::string(1, c);
  return text + "'";
}

}  // namespace

std::string hint(const std::vector<std::string>& arguments) {
  const char* program = std::getenv("SINKHORN_PROGRAM");
  std::string command = program && *program ? quoted(program) : "sinkhorn";
  for (const auto& argument : arguments) command += " " + quoted(argument);
  return command;
}

}  // namespace sinkhorn
