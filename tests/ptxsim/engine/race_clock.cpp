#include "race_clock.h"

#include <algorithm>

#include "error.h"

namespace ptxsim {

void merge_clock(Clock& into, const Clock& from) {
    into.resize(std::max(into.size(), from.size()), 0);
    for (size_t i = 0; i < from.size(); ++i) into[i] = std::max(into[i], from[i]);
}

void WarpClocks::start(u32 warps, u32 own, u32 lanes, bool lanes_race) {
    known_.assign(warps, 0);
    known_[own] = 1;
    std::fill(limit_, limit_ + kLanes, 0u);
    own_ = own;
    all_ = lanes;
    synced_ = 0;
    lanes_race_ = lanes_race;
    split_ = false;
    limit_[own] = lanes_race ? 0 : 1;
}

u32 WarpClocks::tick() {
    if (known_[own_] + 1 >= kLastClock)
        throw SimError(ErrorKind::Unsupported,
                       "A warp synchronises more than 524286 times; race detection has no clock left.");
    return ++known_[own_];
}

void WarpClocks::advance() {
    u32 now = tick();
    if (split_) std::fill(apart_->now, apart_->now + kLanes, now);
    limit_[own_] = lanes_race_ ? synced_ : now;
}

WarpClocks::Apart& WarpClocks::take_apart() {
    if (!apart_) apart_ = std::make_unique<Apart>();
    if (!split_) {
        std::fill(apart_->now, apart_->now + kLanes, known_[own_]);
        for (auto& known : apart_->known) std::fill(known, known + kLanes, synced_);
        split_ = true;
    }
    return *apart_;
}

bool WarpClocks::apart_knows(int lane, u32 other, u32 clock) const {
    if (lane >= 0) return clock <= apart_->known[lane][other];
    for (u32 i = 0; i < kLanes; ++i)
        if (i != other && lane_in(all_, static_cast<int>(i)) && clock > apart_->known[i][other]) return false;
    return true;
}

// Each lane of the mask learns what every other one of them did and had learnt. Lanes that have exited or wait
// elsewhere take no part: what they did stays unordered.
void WarpClocks::sync_part(u32 lanes) {
    if (!lanes_race_) return advance();
    Apart& apart = take_apart();
    u32 joint[kLanes] = {};
    for (u32 left = lanes; left; left &= left - 1) {
        int i = __builtin_ctz(left);
        for (int m = 0; m < kLanes; ++m) joint[m] = std::max(joint[m], apart.known[i][m]);
        joint[i] = std::max(joint[i], apart.now[i]);
    }
    u32 now = tick();
    for (u32 left = lanes; left; left &= left - 1) {
        int i = __builtin_ctz(left);
        std::copy(joint, joint + kLanes, apart.known[i]);
        apart.now[i] = now;
    }
}

void WarpClocks::join(const Clock& other, u32 lanes) {
    if (other.size() > known_.size()) known_.resize(other.size(), 0);
    for (size_t i = 0; i < other.size(); ++i) {
        if (i == own_) continue;
        known_[i] = std::max(known_[i], other[i]);
        if (i < kLanes) limit_[i] = known_[i];
    }
    if (own_ < other.size() && lanes_race_ && other[own_] > synced_) join_lanes(other[own_], lanes);
}

void WarpClocks::join_lanes(u32 published, u32 lanes) {
    if (lanes == all_) {
        limit_[own_] = synced_ = published;
        bool rejoined = split_ && published + 1 == known_[own_];  // nothing is newer than what all lanes now know
        if (rejoined) split_ = false;
        if (!split_) return;
    }
    Apart& apart = take_apart();
    for (u32 left = lanes; left; left &= left - 1)
        for (u32& known : apart.known[__builtin_ctz(left)]) known = std::max(known, published);
}

}  // namespace ptxsim
