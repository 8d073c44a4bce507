// Liveness and linear-scan assignment of virtual registers to cells. Lanes run one program each, so what is dead on a
// lane's path may be reused although other lanes of the warp are elsewhere: writes are masked.
#include <algorithm>
#include <climits>
#include <queue>

#include "flow.h"

namespace ptxsim {

namespace {

void collect(const Operand& operand, std::vector<int>& ids) {
    if (operand.kind == Operand::kReg) ids.push_back(operand.id);
    for (const Operand& item : operand.items) collect(item, ids);
}

bool writes_first_operand(const Inst& inst) {
    static const std::vector<std::string> none{
        "st",       "red",   "bra",     "brx",           "bar",     "barrier",        "ret",       "exit",
        "trap",     "call",  "cp",      "membar",        "fence",   "prefetch",       "prefetchu", "nanosleep",
        "stmatrix", "brkpt", "discard", "applypriority", "pmevent", "griddepcontrol", "setmaxnreg"};
    if (inst.opcode == "bar" || inst.opcode == "barrier") return inst.has("red") && inst.operands.size() > 1;
    if (inst.opcode == "mbarrier")
        return inst.has("test_wait") || inst.has("try_wait") || inst.has("pending_count") || inst.has("arrive") ||
               inst.has("arrive_drop");
    return std::find(none.begin(), none.end(), inst.opcode) == none.end();
}

using BitSet = std::vector<u64>;
void set_bit(BitSet& s, int i) { s[i >> 6] |= 1ull << (i & 63); }
void clear_bit(BitSet& s, int i) { s[i >> 6] &= ~(1ull << (i & 63)); }

struct Interval { int id, begin, end; };

class Liveness {
  public:
    Liveness(const Function& function, const Flow& flow)
        : function_(function), flow_(flow), words_((function.regs.size() + 63) / 64) {}

    std::vector<Interval> intervals() {
        local_sets();
        propagate();
        begin_.assign(function_.regs.size(), -1);
        end_.assign(function_.regs.size(), -1);
        for (size_t b = 0; b < flow_.blocks.size(); ++b) extend_block(b);
        std::vector<Interval> out;
        for (size_t r = 0; r < begin_.size(); ++r)
            if (begin_[r] >= 0) out.push_back({static_cast<int>(r), begin_[r], end_[r]});
        std::sort(out.begin(), out.end(), [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
        return out;
    }

  private:
    void local_sets() {
        gen_.assign(flow_.blocks.size(), BitSet(words_, 0));
        kill_ = live_in_ = live_out_ = gen_;
        std::vector<int> writes, reads;
        for (size_t b = 0; b < flow_.blocks.size(); ++b) {
            for (int i = flow_.blocks[b].end - 1; i >= flow_.blocks[b].begin; --i) {
                const Inst& inst = function_.body[i];
                registers_of(inst, writes, reads);
                for (int r : writes) {
                    if (inst.guard >= 0) continue;  // lanes with a false guard keep the old value
                    set_bit(kill_[b], r);
                    clear_bit(gen_[b], r);
                }
                for (int r : reads) set_bit(gen_[b], r);
            }
        }
    }

    void propagate() {
        for (bool changed = true; changed;) {
            changed = false;
            for (size_t b = flow_.blocks.size(); b-- > 0;) {
                for (int s : flow_.blocks[b].successors)
                    for (size_t w = 0; w < words_; ++w) live_out_[b][w] |= live_in_[s][w];
                for (size_t w = 0; w < words_; ++w) {
                    u64 in = gen_[b][w] | (live_out_[b][w] & ~kill_[b][w]);
                    changed |= in != live_in_[b][w];
                    live_in_[b][w] = in;
                }
            }
        }
    }

    void touch(int reg, int at) {
        if (begin_[reg] < 0) begin_[reg] = end_[reg] = at;
        begin_[reg] = std::min(begin_[reg], at);
        end_[reg] = std::max(end_[reg], at);
    }

    void touch_set(const BitSet& set, int at) {
        for (size_t w = 0; w < words_; ++w)
            for (u64 bits = set[w]; bits; bits &= bits - 1) touch(static_cast<int>(w * 64) + __builtin_ctzll(bits), at);
    }

    void extend_block(size_t b) {
        const Flow::Block& block = flow_.blocks[b];
        touch_set(live_in_[b], block.begin);
        touch_set(live_out_[b], block.end);
        std::vector<int> writes, reads;
        for (int i = block.begin; i < block.end; ++i) {
            registers_of(function_.body[i], writes, reads);
            for (int r : writes) touch(r, i);
            for (int r : reads) touch(r, i);
        }
    }

    const Function& function_;
    const Flow& flow_;
    size_t words_;
    std::vector<BitSet> gen_, kill_, live_in_, live_out_;
    std::vector<int> begin_, end_;
};

// Hands out the slots of one register class; a slot is free again after the last instruction that touches it.
class SlotPool {
  public:
    u32 take(const Interval& interval) {
        while (!busy_.empty() && busy_.top().first < interval.begin) {
            free_.push_back(busy_.top().second);
            busy_.pop();
        }
        u32 slot = free_.empty() ? count_++ : free_.back();
        if (!free_.empty()) free_.pop_back();
        busy_.push({interval.end, slot});
        return slot;
    }
    u32 count() const { return count_; }

  private:
    std::priority_queue<std::pair<int, u32>, std::vector<std::pair<int, u32>>, std::greater<>> busy_;
    std::vector<u32> free_;
    u32 count_ = 1;  // slot 0 is the sink
};

}  // namespace

void registers_of(const Inst& inst, std::vector<int>& writes, std::vector<int>& reads) {
    writes.clear();
    reads.clear();
    bool first = writes_first_operand(inst);
    for (size_t i = 0; i < inst.operands.size(); ++i) {
        bool written = i == 0 && first && inst.operands[i].kind != Operand::kAddress;
        collect(inst.operands[i], written ? writes : reads);
    }
    if (inst.guard >= 0) reads.push_back(inst.guard);
    if (inst.opcode == "wgmma" && inst.has("mma_async")) reads.insert(reads.end(), writes.begin(), writes.end());
}

RegisterMap allocate_registers(const Function& function, const Flow& flow, const std::vector<bool>& apart) {
    RegisterMap map;
    map.index.assign(function.regs.size(), 0);
    SlotPool narrow, wide, predicates;
    std::vector<Interval> intervals = Liveness(function, flow).intervals();
    auto stays = [&](const Interval& i) { return !apart.empty() && apart[static_cast<size_t>(i.id)]; };
    auto place = [&](const Interval& interval) {
        RegClass cls = function.regs[interval.id].cls;
        SlotPool& pool = cls == RegClass::Pred ? predicates : cls == RegClass::B64 ? wide : narrow;
        map.index[interval.id] = pool.take(interval);
    };
    // What is held over the end of a loop is held when the loop's first instructions run again, so these come first.
    for (const Interval& interval : intervals)
        if (stays(interval)) place({interval.id, 0, INT_MAX});
    for (const Interval& interval : intervals)
        if (!stays(interval)) place(interval);
    map.narrow = narrow.count();
    map.wide = wide.count();
    map.predicates = predicates.count();
    return map;
}

}  // namespace ptxsim
