#include "scheduler.h"

#include <thread>

#include "cluster.h"

namespace ptxsim {

namespace {

constexpr u64 kTurn = 100'000;        // warp instructions a CTA runs before the next resident one gets its turn
constexpr u64 kPatience = 1'000'000;  // a CTA that runs longer may be waiting for one that has not started
constexpr size_t kMostResident = 4096;
constexpr u64 kGraceTurns = 100;  // for CTAs before the failed one: time to fail too, unless they wait for it

// Hands out numbers of clusters once each, permuted by a Feistel network so that a grid of any size needs no table.
class ClusterOrder {
  public:
    ClusterOrder(u64 count, u64 seed) : count_(count), seed_(seed) {
        while ((1ull << (2 * half_bits_)) < count_) ++half_bits_;
    }
    // The position tells how many were handed out before.
    bool next(u64& cluster, u64& position) {
        u64 n = position = taken_++;
        if (n >= count_) return false;
        do n = permute(n);
        while (n >= count_);
        cluster = n;
        return true;
    }

  private:
    u64 permute(u64 n) const {
        u64 mask = (1ull << half_bits_) - 1, left = n >> half_bits_, right = n & mask;
        for (u64 round = 0; round < 4; ++round) {
            u64 swap = left ^ (mix(seed_ + round * 77 + right) & mask);
            left = right;
            right = swap;
        }
        return left << half_bits_ | right;
    }
    u64 count_, seed_;
    int half_bits_ = 1;
    std::atomic<u64> taken_{0};
};

struct Shared {
    const Launch& launch;
    ClusterOrder order;
    u64 together;  // clusters a worker begins with: its share of a cooperative launch, else one
    // Threads fail in any order. The error reported is that of the CTA handed out first, as with one thread.
    std::atomic<u64> failed_at{kNever};
    std::mutex mutex;
    std::exception_ptr error;

    static constexpr u64 kNever = ~0ull;
    bool failed() const { return failed_at != kNever; }
    void fail(u64 position) {
        std::lock_guard<std::mutex> lock(mutex);
        if (position >= failed_at) return;
        error = std::current_exception();
        failed_at = position;
    }
};

struct Resident {
    std::unique_ptr<Cluster> cluster;  // mostly of one CTA
    u64 position;
};

class Worker {
  public:
    Worker(Shared& shared) : shared_(shared), profile_(shared.launch.program->code.size()) {}

    void run() {
        try {
            loop();
        } catch (...) {
            shared_.fail(position_);
        }
    }
    const std::vector<Profile>& profile() const { return profile_; }
    const Counters& counters() const { return counters_; }

  private:
    void loop() {
        if (!admit()) return;
        for (u64 i = 1; i < shared_.together && admit();) ++i;
        for (u64 grace = kGraceTurns; !resident_.empty() && grace;) {
            for (size_t i = 0; i < resident_.size() && grace;) {
                position_ = resident_[i].position;
                if (shared_.failed()) --grace;
                if (position_ < shared_.failed_at && !resident_[i].cluster->run(kTurn)) {
                    ++i;
                    continue;
                }
                spare_.push_back(std::move(resident_[i].cluster));
                resident_.erase(resident_.begin() + static_cast<long>(i));
            }
            bool impatient = !resident_.empty() &&
                             (resident_.back().cluster->issued() > kPatience || resident_.back().cluster->waits());
            if (resident_.empty() || (impatient && resident_.size() < kMostResident)) admit();
        }
    }

    bool admit() {
        u64 index;
        if (shared_.failed() || !shared_.order.next(index, position_)) return false;
        std::unique_ptr<Cluster> cluster;
        if (spare_.empty()) {
            cluster = std::make_unique<Cluster>();
        } else {
            cluster = std::move(spare_.back());
            spare_.pop_back();
        }
        cluster->start(shared_.launch, index, profile_.data(), &counters_);
        resident_.push_back({std::move(cluster), position_});
        return true;
    }

    Shared& shared_;
    std::vector<Profile> profile_;
    Counters counters_;
    std::vector<Resident> resident_;
    std::vector<std::unique_ptr<Cluster>> spare_;
    u64 position_ = 0;  // of the cluster at work
};

}  // namespace

LaunchReport run_grid(const Launch& launch, int threads) {
    u64 ctas = static_cast<u64>(launch.grid[0]) * launch.grid[1] * launch.grid[2],
        clusters = ctas / launch.cluster_size();
    u64 count = std::min<u64>(static_cast<u64>(std::max(threads, 1)), clusters);
    Shared shared{launch, {clusters, launch.seed}, launch.grid_barrier ? (clusters + count - 1) / count : 1};
    std::vector<std::unique_ptr<Worker>> workers;
    for (u64 i = 0; i < count; ++i) workers.push_back(std::make_unique<Worker>(shared));
    std::vector<std::thread> others;
    for (u64 i = 1; i < count; ++i) others.emplace_back([&, i] { workers[i]->run(); });
    workers[0]->run();
    for (std::thread& t : others) t.join();
    if (shared.error) std::rethrow_exception(shared.error);

    std::vector<Profile> profile = workers[0]->profile();
    Counters counters = workers[0]->counters();
    for (u64 i = 1; i < count; ++i) {
        counters.add(workers[i]->counters());
        const std::vector<Profile>& other = workers[i]->profile();
        for (size_t pc = 0; pc < profile.size(); ++pc) {
            profile[pc].issues += other[pc].issues;
            profile[pc].lanes += other[pc].lanes;
            profile[pc].wavefronts += other[pc].wavefronts;
            profile[pc].ideal_wavefronts += other[pc].ideal_wavefronts;
            profile[pc].sectors += other[pc].sectors;
        }
    }
    return summarise(*launch.program, profile, counters);
}

}  // namespace ptxsim
