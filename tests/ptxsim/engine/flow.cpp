#include "flow.h"

#include <algorithm>
#include <set>

#include "error.h"

namespace ptxsim {

namespace {

bool ends_block(const Inst& inst) {
    return inst.opcode == "bra" || inst.opcode == "brx" || inst.opcode == "ret" || inst.opcode == "exit" ||
           inst.opcode == "trap";
}

int label_inst(const Function& function, const Inst& inst, const std::string& label) {
    const Label* found = function.find_label(inst.scope, label);
    if (!found) throw SimError(ErrorKind::BadProgram, "Unknown label `" + label + "` in " + function.name + ".");
    return found->inst;
}

std::vector<int> branch_targets(const Function& function, const Inst& inst) {
    std::vector<int> targets;
    if (inst.opcode == "bra") targets.push_back(label_inst(function, inst, inst.operands.at(0).name));
    if (inst.opcode == "brx") {
        const Label* table = function.find_label(inst.scope, inst.operands.at(1).name);
        if (!table)
            throw SimError(ErrorKind::BadProgram, "brx.idx without its .branchtargets in " + function.name + ".");
        for (const auto& label : table->targets) targets.push_back(label_inst(function, inst, label));
    }
    return targets;
}

void find_blocks(const Function& function, Flow& flow) {
    int count = static_cast<int>(function.body.size());
    std::set<int> leaders{0};
    for (int i = 0; i < count; ++i) {
        if (!ends_block(function.body[i])) continue;
        leaders.insert(i + 1);
        for (int target : branch_targets(function, function.body[i])) leaders.insert(target);
    }
    leaders.erase(leaders.lower_bound(count), leaders.end());
    flow.block_of.assign(count + 1, -1);
    for (auto it = leaders.begin(); it != leaders.end(); ++it) {
        auto after = std::next(it);
        Flow::Block block;
        block.begin = *it;
        block.end = after == leaders.end() ? count : *after;
        for (int i = block.begin; i < block.end; ++i) flow.block_of[i] = static_cast<int>(flow.blocks.size());
        flow.blocks.push_back(block);
    }
}

void link_blocks(const Function& function, Flow& flow) {
    int count = static_cast<int>(function.body.size());
    for (Flow::Block& block : flow.blocks) {
        if (block.end == block.begin) continue;
        const Inst& last = function.body[block.end - 1];
        bool falls = !ends_block(last) || last.guard >= 0;
        auto link = [&](int inst) {
            if (inst >= count) block.leaves = true;
            else block.successors.push_back(flow.block_of[inst]);
        };
        if (ends_block(last)) {
            for (int target : branch_targets(function, last)) link(target);
            if (last.opcode != "bra" && last.opcode != "brx") block.leaves = true;
        }
        if (falls) link(block.end);
    }
}

// Cooper, Harvey and Kennedy's dominator iteration on the reversed graph; node n is the virtual end.
class PostDominators {
  public:
    explicit PostDominators(Flow& flow) : flow_(flow), end_(static_cast<int>(flow.blocks.size())) {}

    void run() {
        order_from_end();
        parent_.assign(end_ + 1, -1);
        parent_[end_] = end_;
        for (bool changed = true; changed;) {
            changed = false;
            for (auto it = order_.rbegin(); it != order_.rend(); ++it) changed |= *it != end_ && update(*it);
        }
        flow_.immediate_post_dominator.assign(end_, -1);
        for (int b = 0; b < end_; ++b)
            if (parent_[b] >= 0 && parent_[b] != end_) flow_.immediate_post_dominator[b] = parent_[b];
    }

  private:
    std::vector<int> successors(int block) const {
        std::vector<int> out = flow_.blocks[block].successors;
        if (flow_.blocks[block].leaves) out.push_back(end_);
        return out;
    }

    void order_from_end() {
        std::vector<std::vector<int>> before(end_ + 1);
        for (int b = 0; b < end_; ++b)
            for (int s : successors(b)) before[s].push_back(b);
        number_.assign(end_ + 1, -1);
        std::vector<std::pair<int, size_t>> stack{{end_, 0}};
        std::vector<char> seen(end_ + 1, 0);
        seen[end_] = 1;
        while (!stack.empty()) {
            auto& [node, next] = stack.back();
            if (next < before[node].size()) {
                int p = before[node][next++];
                if (!seen[p]) seen[p] = 1, stack.push_back({p, 0});
            } else {
                number_[node] = static_cast<int>(order_.size());
                order_.push_back(node);
                stack.pop_back();
            }
        }
    }

    bool update(int block) {
        int best = -1;
        for (int s : successors(block)) {
            if (number_[s] < 0 || parent_[s] < 0) continue;
            best = best < 0 ? s : intersect(s, best);
        }
        if (best == parent_[block]) return false;
        parent_[block] = best;
        return true;
    }

    int intersect(int a, int b) const {
        while (a != b) {
            while (number_[a] < number_[b]) a = parent_[a];
            while (number_[b] < number_[a]) b = parent_[b];
        }
        return a;
    }

    Flow& flow_;
    int end_;
    std::vector<int> order_, number_, parent_;
};

}  // namespace

Flow analyse_flow(const Function& function) {
    Flow flow;
    find_blocks(function, flow);
    link_blocks(function, flow);
    PostDominators(flow).run();
    return flow;
}

}  // namespace ptxsim
