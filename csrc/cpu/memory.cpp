#include "memory.h"

#include <pthread.h>

#include <cstdlib>
#include <mutex>
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

void lock_before_fork();
void unlock_in_parent() noexcept;
void unlock_in_child() noexcept;

// Made when the library is loaded, not by its first call: a thread that forks while another one is in that
// call would leave a half-made pool to the child.
Pool* make_pool() {
  pthread_atfork(lock_before_fork, unlock_in_parent, unlock_in_child);
  return new Pool;  // never destroyed: threads may outlive static objects
}

Pool* const the_pool = make_pool();

Pool& pool() { return *the_pool; }

// A child has one thread. A lock that another thread of its parent held would never be released in it, so
// the forking thread itself holds the lock meanwhile.
void lock_before_fork() { pool().mutex.lock(); }
void unlock_in_parent() noexcept { pool().mutex.unlock(); }
void unlock_in_child() noexcept {
  pool().used = 0;  // the threads that would give it back are not here
  pool().mutex.unlock();
}

// The smallest kept block that fits and is not twice too large. Where there is none, kept blocks make
// room for a fresh one, or forward's would lie next to backward's.
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
  const std::size_t asked = bytes;
  bytes = (bytes + kLine - 1) / kLine * kLine;
  Header* block = take_kept(bytes);
  if (!block) {
    void* const fresh = std::aligned_alloc(kLine, bytes + kLine);
    if (!fresh) {
      forget(bytes);
      throw OutOfMemory("differential attention needs " + std::to_string(asked) +
                        " bytes of working memory, which the system does not have");
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
