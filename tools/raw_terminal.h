// A terminal that hands over each key at once and is drawn in place; it is as it was again however the program ends.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace sinkhorn {

struct Key {
  enum class Kind {
    none,       // nothing came in time
    character,  // `character` holds it; Tab is '\t'
    left,
    right,
    up,
    down,
    home,
    end,
    page_up,
    page_down,
    enter,
    escape,
    backspace,
    interrupt,  // Ctrl-C, or a signal that asks the program to end
    suspend,    // Ctrl-Z
    redraw,     // the window has another size, or the program came back from being suspended
    closed,     // the terminal is gone
  };
  Kind kind = Kind::none;
  char32_t character = 0;

  bool is(char32_t wanted) const { return kind == Kind::character && character == wanted; }
  bool operator==(const Key&) const = default;
};

/// Turns what a terminal sends into keys: UTF-8 characters, and the escape sequences of arrows and their neighbours.
/// Sequences that it does not know are swallowed whole.
class KeyDecoder {
 public:
  /// Keys that are complete with these bytes.
  std::vector<Key> push(std::string_view bytes);
  /// What the bytes that wait mean if no more come: an escape byte alone is the Escape key.
  std::vector<Key> finish();
  bool waiting() const { return !bytes_.empty(); }

 private:
  std::string bytes_;
};

struct TerminalSize {
  int columns = 80, rows = 24;
};

/// While one lives, the terminal on stdin and stdout neither echoes nor waits for Enter. Its settings, the cursor and
/// the screen are restored by the destructor, and before the process ends by a crash (SIGSEGV, SIGABRT and others). The
/// first SIGINT, SIGTERM or SIGHUP reads as Key::interrupt; a second one restores and ends the process with exit code
/// 130. Ctrl-Z restores and suspends. One at a time.
class RawTerminal {
 public:
  enum class Screen { same, alternate };
  /// Throws Error if stdin or stdout is no terminal.
  explicit RawTerminal(Screen screen = Screen::alternate);
  ~RawTerminal();
  RawTerminal(const RawTerminal&) = delete;

  /// Whether stdin and stdout are terminals that can move the cursor.
  static bool available();

  /// The next key, or Kind::none after `timeout_ms` without one (below 0: waits for ever).
  Key read(int timeout_ms);
  /// Puts lines into the place of what was drawn before; what does not fit into the window's height is left out.
  void draw(std::string_view picture);
  /// Of the window now.
  TerminalSize size() const;

 private:
  void suspend();

  KeyDecoder decoder_;
  std::vector<Key> ready_;
};

}  // namespace sinkhorn
