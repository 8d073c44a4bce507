// The library's environment variables, all read in one way: empty means not set, and case does not matter.
#pragma once
#include <cctype>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace diffattn {

inline std::string environment(const char* name) {
  const char* value = std::getenv(name);
  std::string lower = value ? value : "";
  for (char& c : lower) c = char(std::tolower(static_cast<unsigned char>(c)));
  return lower;
}

// A switch, off unless set.
inline bool environment_flag(const char* name) {
  const std::string asked = environment(name);
  for (const char* on : {"1", "true", "yes", "on"})
    if (asked == on) return true;
  for (const char* off : {"", "0", "false", "no", "off"})
    if (asked == off) return false;
  throw std::runtime_error(std::string(name) + " is " + asked +
                           ", accepted: 1, true, yes, on; 0, false, no, off or nothing");
}

}  // namespace diffattn
