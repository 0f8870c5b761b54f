#include "notebooks/kit/quiz.h"

#include <cmath>
#include <cstdlib>

#include "notebooks/kit/drawing.h"

namespace sinkhorn::lessons {

bool Question::accepts(const std::string& answer) const {
  const std::size_t begin = answer.find_first_not_of(" \t"), end = answer.find_last_not_of(" \t\r\n");
  if (begin == std::string::npos) return false;
  const std::string word = answer.substr(begin, end - begin + 1);
  char* rest = nullptr;
  const double given = std::strtod(word.c_str(), &rest);
  if (*rest != '\0') return false;
  if (!choices.empty()) return given == double(right + 1);
  return std::abs(given - number) <= tolerance * std::max(1e-6, std::abs(number));
}

std::string Question::answer() const {
  return choices.empty() ? drawing::number(number, 6) : std::to_string(right + 1) + ") " + choices[right];
}

Question Question::shuffled(Rng rng) const {
  Question result = *this;
  const RandomBits bits = rng.bits();
  for (std::size_t i = result.choices.size(); i > 1; --i) {
    const std::size_t j = bits.word(i) % i;
    std::swap(result.choices[i - 1], result.choices[j]);
    if (result.right == i - 1)
      result.right = j;
    else if (result.right == j)
      result.right = i - 1;
  }
  return result;
}

double rounded(Rng rng, double low, double high, int decimals) {
  const double unit = std::pow(10.0, decimals);
  const double x = std::round((low + (high - low) * rng.bits().uniform<double>(0)) * unit) / unit;
  return x == 0 ? 0 : x;  // never "-0"
}

std::int64_t whole(Rng rng, std::int64_t low, std::int64_t high) {
  return low + std::int64_t(rng.bits().word(0)) % (high - low + 1);
}

}  // namespace sinkhorn::lessons
