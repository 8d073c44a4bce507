#include "memory.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace diffattn::cpu {
namespace {

constexpr std::size_t kLine = 64, kMost = 28 << 20;  // bytes kept and in use

// In front of each block, in a line of its own.
struct Header {
  std::size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::vector<Header*> blocks;  // kept, the oldest first
  std::size_t kept = 0, used = 0;
};

Pool& pool() {
  static auto* const the_pool = new Pool;  // never destroyed: threads may outlive static objects
  return *the_pool;
}

// The smallest kept block that fits and is not twice too large. Where there is none, kept blocks make
// room for a fresh one, or forward's would lie beside backward's.
Header* take_kept(std::size_t bytes) {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  auto best = p.blocks.end();
  for (auto it = p.blocks.begin(); it != p.blocks.end(); ++it)
    if ((*it)->bytes >= bytes && (*it)->bytes <= 2 * bytes &&
        (best == p.blocks.end() || (*it)->bytes < (*best)->bytes))
      best = it;
  Header* found = nullptr;
  if (best != p.blocks.end()) {
    found = *best;
    p.blocks.erase(best);
    p.kept -= found->bytes;
  }
  p.used += found ? found->bytes : bytes;
  while (!found && !p.blocks.empty() && p.kept + p.used > kMost) {
    p.kept -= p.blocks.front()->bytes;
    std::free(p.blocks.front());
    p.blocks.erase(p.blocks.begin());
  }
  return found;
}

void forget(std::size_t used) noexcept {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  p.used -= used;
}

bool keep(Header* block) noexcept {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  p.used -= block->bytes;
  if (p.kept + p.used + block->bytes > kMost) return false;
  try {
    p.blocks.push_back(block);
  } catch (const std::bad_alloc&) {
    return false;
  }
  p.kept += block->bytes;
  return true;
}

}  // namespace

void* take_memory(std::size_t bytes) {
  bytes = (bytes + kLine - 1) / kLine * kLine;
  Header* block = take_kept(bytes);
  if (!block) {
    void* const fresh = std::aligned_alloc(kLine, bytes + kLine);
    if (!fresh) {
      forget(bytes);
      throw std::bad_alloc();
    }
    block = new (fresh) Header{bytes};
  }
  return reinterpret_cast<char*>(block) + kLine;
}

void give_back_memory(void* p) noexcept {
  auto* const block = reinterpret_cast<Header*>(static_cast<char*>(p) - kLine);
  if (!keep(block)) std::free(block);
}

}  // namespace diffattn::cpu
