#include "memory.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace diffattn::cpu {
namespace {

constexpr std::size_t kLine = 64, kMostKept = 32 << 20;

// In front of each block, in a line of its own.
struct Header {
  std::size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::vector<Header*> blocks;
  std::size_t bytes = 0;
};

Pool& pool() {
  static auto* const the_pool = new Pool;  // never destroyed: threads may outlive static objects
  return *the_pool;
}

// The smallest kept block that fits and is not twice too large.
Header* take_kept(std::size_t bytes) {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  auto best = p.blocks.end();
  for (auto it = p.blocks.begin(); it != p.blocks.end(); ++it)
    if ((*it)->bytes >= bytes && (*it)->bytes <= 2 * bytes &&
        (best == p.blocks.end() || (*it)->bytes < (*best)->bytes))
      best = it;
  if (best == p.blocks.end()) return nullptr;
  Header* const found = *best;
  p.blocks.erase(best);
  p.bytes -= found->bytes;
  return found;
}

bool keep(Header* block) noexcept {
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  if (p.bytes + block->bytes > kMostKept) return false;
  try {
    p.blocks.push_back(block);
  } catch (const std::bad_alloc&) {
    return false;
  }
  p.bytes += block->bytes;
  return true;
}

}  // namespace

void* take_memory(std::size_t bytes) {
  bytes = (bytes + kLine - 1) / kLine * kLine;
  Header* block = take_kept(bytes);
  if (!block) {
    void* const fresh = std::aligned_alloc(kLine, bytes + kLine);
    if (!fresh) throw std::bad_alloc();
    block = new (fresh) Header{bytes};
  }
  return reinterpret_cast<char*>(block) + kLine;
}

void give_back_memory(void* p) noexcept {
  auto* const block = reinterpret_cast<Header*>(static_cast<char*>(p) - kLine);
  if (!keep(block)) std::free(block);
}

}  // namespace diffattn::cpu
