#include "race_global.h"

#include <algorithm>

#include "cta.h"
#include "dependent_launch.h"
#include "race_words.h"

namespace ptxsim {

namespace {

std::string place_of(const Cta& cta, u32 stored_cta) {
    if (stored_cta == kManyCtas) return "another CTA";
    const u32* grid = cta.launch->grid;
    u32 c = stored_cta - 1;
    return "CTA (" + std::to_string(c % grid[0]) + ", " + std::to_string(c / grid[0] % grid[1]) + ", " +
           std::to_string(c / (grid[0] * grid[1])) + ")";
}

// One lane's access to some bytes of one word.
class WordAccess {
  public:
    WordAccess(Warp& warp, int by_lane, Allocation& allocation, u64 word, u32 bytes, GlobalAccess how, const u8* data)
        : w(warp),
          cta(*warp.cta),
          lane(by_lane),
          a(allocation),
          shadow(allocation.shadow[word]),
          threads(allocation.threads ? allocation.threads + 2 * word : nullptr),
          address(allocation.base + 4 * word),
          mask(bytes),
          access(how),
          stored(data),
          mine(warp.cta->index + 1) {}

    void run() {
        u64 old = shadow.load(std::memory_order_relaxed);
        for (;;) {
            CtaEntry e{cta.epoch, 0, 0, 0, 0};
            if (old >> 52 == cta.epoch) e = CtaEntry::unpack(old);
            u32 fresh = mask & ~(e.written | e.read);
            if (e.written & mask) check_write(e);
            if (access == GlobalAccess::Write && (e.read & mask)) check_reads(e);
            u64 thread = 0;
            CtaEntry next = access == GlobalAccess::Write ? after_write(e, thread)
                            : reads()                     ? after_read(e, thread)
                                                          : e;
            u64 bits = next.pack();
            if (bits != old && !shadow.compare_exchange_weak(old, bits, std::memory_order_relaxed)) continue;
            if (thread && threads) threads[reads() ? 1 : 0].store(thread, std::memory_order_relaxed);
            cta.counters->global_distinct_bytes += static_cast<u64>(popcount(fresh));
            return;
        }
    }

  private:
    bool reads() const { return access < GlobalAccess::Write; }
    bool plain() const { return access != GlobalAccess::StrongRead && access != GlobalAccess::Atomic; }
    ThreadWrite last_write() const { return ThreadWrite::unpack(threads[0].load(std::memory_order_relaxed)); }
    ThreadRead last_read() const { return ThreadRead::unpack(threads[1].load(std::memory_order_relaxed)); }

    bool ordered(u32 warp, u32 other_lane, u32 clock) const {
        if (clock <= w.clocks.limit(warp)) return true;
        return warp == static_cast<u32>(w.id) && w.clocks.knows(lane, other_lane, clock);
    }

    void check_write(const CtaEntry& e) const {
        ThreadWrite t = last_write();
        if (e.writer == mine) {
            bool unclear = t.mixed && t.warp == static_cast<u32>(w.id);  // which lane wrote these bytes
            if ((t.bytes & mask) && !unclear && !ordered(t.warp, t.lane, t.clock) && !same_store(t))
                report_thread(t.warp, t.lane, "write", " (" + w.program->text_at(t.pc) + ")");
        } else if (plain() && !write_before(t, e.writer)) {
            report("write", "by " + place_of(cta, e.writer) + " in the same launch.");
        }
        if (access == GlobalAccess::ReadNonCoherent)
            report("write", "in the same launch: ld.global.nc needs read-only data.");
    }

    // Lanes of one instruction store one after the other: what the earlier one stored is in memory.
    bool same_store(const ThreadWrite& t) const {
        if (!stored || t.warp != static_cast<u32>(w.id) || t.pc != (w.current_pc() & kPcMask)) return false;
        if (t.clock != w.clocks.now(static_cast<int>(t.lane))) return false;
        u32 first = static_cast<u32>(__builtin_ctz(mask)), count = static_cast<u32>(popcount(mask));
        return std::memcmp(reinterpret_cast<const u8*>(address) + first, stored, count) == 0;
    }

    void check_reads(const CtaEntry& e) const {
        if (e.reader == mine) return check_own_reads();
        bool known;
        if (e.reader == kManyCtas) {
            known = knows_all_others(cta);
        } else {
            ThreadRead t = last_read();
            known = t.strong || read_before(t, e.reader);
        }
        if (!known) report("read", "by " + place_of(cta, e.reader) + " in the same launch.");
    }

    // Of several warps' reads only the last barrier of the whole CTA before them is known. A warp that has learnt
    // anything of a reader since then may be ordered after it.
    void check_own_reads() const {
        ThreadRead t = last_read();
        if (!(t.bytes & mask)) return;
        if (!t.several) {
            if (t.clock <= w.clocks.limit(t.warp)) return;
            if (t.warp != static_cast<u32>(w.id)) report_thread(t.warp, __builtin_ctz(t.who), "read", "");
            if (t.mixed) return;
            for (u32 left = t.who; left; left &= left - 1) {
                u32 other = static_cast<u32>(__builtin_ctz(left));
                if (!w.clocks.knows(lane, other, t.clock)) report_thread(t.warp, other, "read", "");
            }
        } else if (t.clock == cta.whole_barriers) {
            for (u32 left = t.who & ~(1u << w.id); left; left &= left - 1) {
                u32 warp = static_cast<u32>(__builtin_ctz(left));
                if (w.clocks.limit(warp) <= cta.at_whole_barrier[warp]) report_thread(warp, kLanes, "read", "");
            }
        }
    }

    // Of a thread that is not known any more any release of its CTA is taken for its own.
    bool write_before(const ThreadWrite& t, u32 writer) const {
        if (!(t.bytes & mask)) return cta.releases.others.count(writer - 1) != 0;
        return happened_before(cta, writer - 1, t.warp, t.clock);
    }
    bool read_before(const ThreadRead& t, u32 reader) const {
        if (t.several || !(t.bytes & mask)) return cta.releases.others.count(reader - 1) != 0;
        return happened_before(cta, reader - 1, t.warp, t.clock);
    }

    CtaEntry after_write(CtaEntry e, u64& thread) const {
        ThreadWrite t{
            w.current_pc() & kPcMask, w.clocks.now(lane), static_cast<u32>(w.id), static_cast<u32>(lane), mask, 0};
        if (e.writer == mine && e.written && threads) {
            ThreadWrite old = last_write();
            if (old.warp == t.warp && old.clock == t.clock && (old.bytes & ~mask)) {
                t.bytes |= old.bytes;
                t.mixed = old.mixed || old.lane != t.lane;
            }
        }
        thread = t.pack();
        if (e.writer != mine) e.written = 0;  // another CTA's bytes of this word are forgotten, never blamed on us
        e.writer = mine;
        e.written |= mask;
        e.read &= ~mask;  // who is ordered after this write is ordered after those reads
        if (!e.read) e.reader = 0;
        return e;
    }

    CtaEntry after_read(CtaEntry e, u64& thread) const {
        bool strong = access == GlobalAccess::StrongRead, other = e.reader != 0 && e.reader != mine;
        if (other && threads && forgets(e, strong)) {
            e.reader = e.read = 0;
            other = false;
        }
        if (strong && (other || !threads)) return e;  // between CTAs it conflicts with nothing
        if (!other && threads) thread = (e.read ? joined_read(last_read()) : this_read()).pack();
        e.reader = other ? kManyCtas : mine;
        e.read |= mask;
        return e;
    }

    // May this read take the place of another CTA's?
    bool forgets(const CtaEntry& e, bool strong) const {
        if (e.reader == kManyCtas) return !strong && knows_all_others(cta);
        ThreadRead old = last_read();
        return old.strong || (!strong && read_before(old, e.reader));
    }

    ThreadRead this_read() const {
        u32 strong = access == GlobalAccess::StrongRead;
        return {0, strong, 0, mask, static_cast<u32>(w.id), w.clocks.now(lane), 1u << lane};
    }

    // Keeps the earlier reads of this CTA that nothing orders before this one, if they were of the same bytes.
    ThreadRead joined_read(ThreadRead old) const {
        ThreadRead t = this_read();
        if (old.several) {
            if (old.clock != cta.whole_barriers || old.bytes != mask) return t;
            old.who |= 1u << w.id;
        } else if (old.clock <= w.clocks.limit(old.warp)) {
            return t;
        } else if (old.warp == t.warp) {
            old.mixed |= old.bytes != mask && old.who != t.who;
            old.bytes |= mask;
            bool oldest = w.clocks.split() && (old.who & ~t.who);  // as in SharedShadow::mark_read
            old.clock = oldest ? std::min(old.clock, t.clock) : t.clock;
            old.who |= t.who;
        } else {
            if (old.bytes != mask) return t;
            old = {1, old.strong, 0, mask, 0, cta.whole_barriers, 1u << old.warp | 1u << w.id};
        }
        old.strong &= t.strong;
        return old;
    }

    [[noreturn]] void report(const std::string& what, const std::string& by) const {
        u64 at = address + static_cast<u64>(__builtin_ctz(mask));
        SimError error(ErrorKind::Race, std::string("Race on global memory: this ") + (reads() ? "read" : "write") +
                                            " of " + hex(at) + " (byte " + std::to_string(at - a.base) + " of tensor " +
                                            a.name + ") conflicts with a " + what + " " + by);
        error.at_lane(lane).at_address(at).in_tensor(a.name);
        throw error;
    }
    [[noreturn]] void report_thread(u32 warp, u32 other_lane, const std::string& what, const std::string& text) const {
        std::string who = "by warp " + std::to_string(warp);
        if (other_lane < kLanes) who += " lane " + std::to_string(other_lane);
        report(what, who + " of this CTA" + text + ": no barrier between them.");
    }

    static constexpr u32 kPcMask = (1u << 30) - 1;
    Warp& w;
    const Cta& cta;
    const int lane;
    const Allocation& a;
    std::atomic<u64>& shadow;
    std::atomic<u64>* threads;
    const u64 address;
    const u32 mask;
    const GlobalAccess access;
    const u8* stored;
    const u32 mine;
};

// Has this very lane read all four bytes at this clock, or this warp since the last barrier of the whole CTA?
bool read_by_us(const Warp& w, int lane, u64 read) {
    u32 warp = static_cast<u32>(w.id);
    u64 who = kFull, by_warp = ThreadRead{0, 0, 0, 15, warp, w.clocks.now(lane), 0}.pack();
    if ((read & ~who) == by_warp) return (read >> lane) & 1;
    return (read & ~who) == ThreadRead{1, 0, 0, 15, 0, w.cta->whole_barriers, 0}.pack() && ((read >> warp) & 1);
}

// Words that nobody wrote and that many CTAs, or we, have read: another read changes nothing.
bool read_already(const Warp& w, int lane, const Allocation& a, u64 first, u64 last) {
    u64 unwritten = static_cast<u64>(w.cta->epoch) << 52 | 15;
    u64 by_many = unwritten | static_cast<u64>(kManyCtas) << 4;
    for (u64 word = first; word <= last; ++word) {
        u64 old = a.shadow[word].load(std::memory_order_relaxed);
        if (old == by_many) continue;
        if (old != (unwritten | static_cast<u64>(w.cta->index + 1) << 4)) return false;
        if (!a.threads) continue;
        if (!read_by_us(w, lane, a.threads[2 * word + 1].load(std::memory_order_relaxed))) return false;
    }
    return true;
}

}  // namespace

void check_global_race(Warp& w, int lane, Allocation& a, u64 address, u32 bytes, GlobalAccess access, const u8* data) {
    if (!w.cta->checks(kCheckRaceGlobal) || !a.shadow || w.cta->index + 2 >= kManyCtas) return;
    if (w.cta->launch->prerequisites) check_prerequisites(w, lane, a, address, bytes, access);
    u64 begin = address - a.base, end = begin + bytes;
    bool reads = access == GlobalAccess::Read || access == GlobalAccess::ReadNonCoherent;
    if (reads && read_already(w, lane, a, begin / 4, (end - 1) / 4)) return;
    for (u64 word = begin / 4; word * 4 < end; ++word) {
        u32 mask = 15;
        if (word * 4 < begin) mask &= 15u << (begin - word * 4);
        if (word * 4 + 4 > end) mask &= 15u >> (word * 4 + 4 - end);
        const u8* stored = data ? data + (std::max(word * 4, begin) - begin) : nullptr;
        WordAccess(w, lane, a, word, mask & 15u, access, stored).run();
    }
}

u32 next_shadow_epoch() {
    static std::atomic<u64> counter{0};
    u64 n = counter++;
    if (n % 4095 == 4094) MemoryMap::instance().clear_shadows();  // the shadow's 12 bits of epoch come around
    return static_cast<u32>(n % 4095) + 1;
}

}  // namespace ptxsim
