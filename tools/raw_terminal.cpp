#include "tools/raw_terminal.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <utility>

#include "autograd/error.h"
#include "tools/utf8.h"

namespace sinkhorn {
namespace {

// Handlers reach nothing but these. The codes are those that all terminals since the VT100 share, and xterm's alternate
// screen, which others ignore.
termios former_settings;
volatile std::sig_atomic_t changed = 0;   // the terminal is in our hands
volatile std::sig_atomic_t asked = 0;     // SIGINT, SIGTERM or SIGHUP came
volatile std::sig_atomic_t stale = 0;     // the picture is: another size, or back from being suspended
volatile std::sig_atomic_t on_other = 0;  // on the alternate screen
int wake_up[2] = {-1, -1};                // a pipe that ends a wait, whichever thread takes the signal, and when
constexpr std::string_view kEnterOther = "\x1b[?1049h\x1b[H\x1b[2J", kLeaveOther = "\x1b[?1049l";
constexpr std::string_view kHideCursor = "\x1b[?25l", kShowCursor = "\x1b[0m\x1b[?25h";

/// All of it, whatever interrupts; false if the terminal is gone. Safe in signal handlers.
bool send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EAGAIN) {
      pollfd out{STDOUT_FILENO, POLLOUT, 0};
      poll(&out, 1, 1000);
      continue;
    }
    if (written <= 0) return false;
    bytes.remove_prefix(std::size_t(written));
  }
  return true;
}

/// Whether the terminal is ours to change: a program in the background that tried would be stopped, and its shell has
/// set the terminal to its own liking.
bool in_foreground() { return tcgetpgrp(STDIN_FILENO) == getpgrp(); }

/// Gives the terminal back. Safe in signal handlers.
void restore() {
  if (!changed) return;
  changed = 0;
  if (!in_foreground()) return;
  send(kShowCursor);
  send(on_other ? kLeaveOther : std::string_view("\r\n"));
  tcsetattr(STDIN_FILENO, TCSANOW, &former_settings);
}

void set_raw() {
  termios raw = former_settings;
  raw.c_lflag &= ~tcflag_t(ECHO | ICANON | ISIG | IEXTEN);
  raw.c_iflag &= ~tcflag_t(IXON | ICRNL | INLCR);
  raw.c_cc[VMIN] = 1;
  raw.c_cc[VTIME] = 0;
  tcsetattr(STDIN_FILENO, TCSANOW, &raw);
}

void take(bool other_screen) {
  on_other = other_screen;
  changed = 1;
  set_raw();
  if (other_screen) send(kEnterOther);
  send(kHideCursor);
}

/// Ends the wait for a key, also one that has not begun yet.
void wake() {
  const int error = errno;
  (void)!::write(wake_up[1], "", 1);
  errno = error;
}

extern "C" void note_end(int) {
  if (asked) {
    restore();
    _exit(130);
  }
  asked = 1;
  wake();
}

extern "C" void note_change(int) {
  stale = 1;
  wake();
}

extern "C" void restore_and_crash(int number) {
  restore();
  signal(number, SIG_DFL);
  raise(number);
}

struct Handler {
  int number;
  void (*function)(int);
};
constexpr std::array<Handler, 10> kHandlers = {{{SIGINT, note_end},
                                                {SIGTERM, note_end},
                                                {SIGHUP, note_end},
                                                {SIGWINCH, note_change},
                                                {SIGCONT, note_change},
                                                {SIGSEGV, restore_and_crash},
                                                {SIGABRT, restore_and_crash},
                                                {SIGBUS, restore_and_crash},
                                                {SIGFPE, restore_and_crash},
                                                {SIGILL, restore_and_crash}}};
std::array<struct sigaction, kHandlers.size()> former_handlers;

void set_handlers() {
  for (std::size_t i = 0; i < kHandlers.size(); ++i) {
    struct sigaction action {};
    action.sa_handler = kHandlers[i].function;
    sigemptyset(&action.sa_mask);
    sigaction(kHandlers[i].number, nullptr, &former_handlers[i]);
    if (former_handlers[i].sa_handler != SIG_IGN) sigaction(kHandlers[i].number, &action, nullptr);
  }
}

void reset_handlers() {
  for (std::size_t i = 0; i < kHandlers.size(); ++i) sigaction(kHandlers[i].number, &former_handlers[i], nullptr);
}

/// Of an escape sequence without its first byte: "[A", "OA", "[1;5C", "[5~".
Key::Kind sequence(std::string_view text) {
  using Kind = Key::Kind;
  static constexpr std::pair<std::string_view, Kind> numbered[] = {{"1", Kind::home},    {"7", Kind::home},
                                                                   {"4", Kind::end},     {"8", Kind::end},
                                                                   {"5", Kind::page_up}, {"6", Kind::page_down}};
  static constexpr std::pair<char, Kind> lettered[] = {{'A', Kind::up},   {'B', Kind::down}, {'C', Kind::right},
                                                       {'D', Kind::left}, {'H', Kind::home}, {'F', Kind::end}};
  if (text.back() == '~') {
    const std::string_view number = text.substr(1, text.find_first_of("~;") - 1);
    for (const auto& [known, kind] : numbered)
      if (known == number) return kind;
    return Kind::none;
  }
  for (const auto& [known, kind] : lettered)
    if (known == text.back()) return kind;
  return Kind::none;
}

/// Bytes of the escape sequence at the front; 0 if it has not ended yet.
std::size_t sequence_length(std::string_view bytes) {
  if (bytes.size() < 2) return 0;
  if (bytes[1] == 'O') return bytes.size() < 3 ? 0 : 3;
  if (bytes[1] != '[') return 1;  // Escape, then another key
  for (std::size_t i = 2; i < bytes.size(); ++i)
    if (bytes[i] >= 0x40 && bytes[i] <= 0x7E) return i + 1;
  return bytes.size() > 32 ? bytes.size() : 0;  // no terminal sends such long ones
}

Key control(char byte) {
  using Kind = Key::Kind;
  switch (byte) {
    case '\r':
    case '\n':
      return {Kind::enter, 0};
    case '\t':
      return {Kind::character, U'\t'};
    case 0x03:
      return {Kind::interrupt, 0};
    case 0x1A:
      return {Kind::suspend, 0};
    case 0x08:
    case 0x7F:
      return {Kind::backspace, 0};
    default:
      return {};
  }
}

}  // namespace

std::vector<Key> KeyDecoder::push(std::string_view bytes) {
  bytes_ += bytes;
  std::vector<Key> keys;
  const auto add = [&](const Key& key, std::size_t length) {
    if (key.kind != Key::Kind::none) keys.push_back(key);
    bytes_.erase(0, length);
  };
  while (!bytes_.empty()) {
    const char first = bytes_.front();
    if (first == '\x1b') {
      const std::size_t length = sequence_length(bytes_);
      if (length == 0) break;
      add({length == 1 ? Key::Kind::escape : sequence(std::string_view(bytes_).substr(1, length - 1)), 0}, length);
    } else if (static_cast<unsigned char>(first) < 0x20 || first == 0x7F) {
      add(control(first), 1);
    } else {
      const CodePoint point = first_code_point(bytes_);
      if (point.cut_short) break;
      if (point.length == 0)
        add({}, 1);  // no character
      else
        add({Key::Kind::character, point.value}, std::size_t(point.length));
    }
  }
  return keys;
}

std::vector<Key> KeyDecoder::finish() {
  const std::string rest = std::exchange(bytes_, {});
  if (rest == "\x1b") return {{Key::Kind::escape, 0}};
  return {};
}

bool RawTerminal::available() {
  const char* term = std::getenv("TERM");
  return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && term && *term && std::string_view(term) != "dumb";
}

RawTerminal::RawTerminal(Screen screen) {
  if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO) || tcgetattr(STDIN_FILENO, &former_settings) != 0)
    fail("terminal: stdin and stdout must both be terminals to read single keys");
  if (changed) fail("terminal: it is in use already");
  if (pipe2(wake_up, O_NONBLOCK | O_CLOEXEC) != 0) fail("terminal: no file descriptor is free");
  asked = 0;
  stale = 0;
  set_handlers();
  take(screen == Screen::alternate);
}

RawTerminal::~RawTerminal() {
  restore();
  reset_handlers();
  for (int& end : wake_up) ::close(std::exchange(end, -1));
}

void RawTerminal::suspend() {
  const bool other_screen = on_other;
  restore();
  raise(SIGTSTP);  // goes on from here when the shell says `fg`
  take(other_screen);
  stale = 1;
}

Key RawTerminal::read(int timeout_ms) {
  using Kind = Key::Kind;
  using Clock = std::chrono::steady_clock;
  const auto until = Clock::now() + std::chrono::milliseconds(timeout_ms);
  for (;;) {
    if (asked) return {Kind::interrupt, 0};
    if (stale) {
      stale = 0;
      set_raw();  // a shell that stopped the program has set the terminal for itself
      return {Kind::redraw, 0};
    }
    if (!ready_.empty()) {
      const Key key = ready_.front();
      ready_.erase(ready_.begin());
      if (key.kind != Kind::suspend) return key;
      suspend();
      continue;
    }
    // The bytes of one escape sequence come together; an escape byte that stays alone for so long was the key.
    constexpr int sequence_ms = 50;
    int wait = timeout_ms;
    if (timeout_ms >= 0)
      wait = int(std::max<std::int64_t>(
          0, std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count()));
    if (decoder_.waiting()) wait = sequence_ms;
    std::array<pollfd, 2> ends = {{{STDIN_FILENO, POLLIN, 0}, {wake_up[0], POLLIN, 0}}};
    const int count = poll(ends.data(), ends.size(), wait);
    if (count < 0 && errno == EINTR) continue;
    std::array<char, 256> buffer;
    if (count > 0 && ends[1].revents != 0) {
      while (::read(wake_up[0], buffer.data(), buffer.size()) > 0) {
      }
      continue;
    }
    if (count == 0) {
      if (!decoder_.waiting()) return {};
      ready_ = decoder_.finish();
      continue;
    }
    const ssize_t bytes = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (bytes < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (bytes <= 0) return {Kind::closed, 0};
    ready_ = decoder_.push({buffer.data(), std::size_t(bytes)});
  }
}

// A line is erased before it is written: after one that fills the window's width the cursor stands on its last column.
void RawTerminal::draw(std::string_view picture) {
  const int rows = size().rows;
  std::string bytes = "\x1b[H";
  int drawn = 0;
  while (!picture.empty() && drawn < rows) {
    const std::size_t end = std::min(picture.find('\n'), picture.size());
    if (drawn++ > 0) bytes += "\r\n";
    bytes += "\x1b[K";
    bytes += picture.substr(0, end);
    picture.remove_prefix(std::min(end + 1, picture.size()));
  }
  if (drawn < rows) bytes += "\r\n\x1b[J";
  send(bytes);
}

TerminalSize RawTerminal::size() const {
  winsize window{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) != 0 || window.ws_col == 0 || window.ws_row == 0) return {};
  return {window.ws_col, window.ws_row};
}

}  // namespace sinkhorn
