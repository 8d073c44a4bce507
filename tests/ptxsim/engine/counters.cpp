#include "counters.h"

#include <algorithm>

#include "program.h"
#include "wgmma.h"

namespace ptxsim {

namespace {

struct Named {
    const char* name;
    u64 Counters::* field;
};
constexpr Named kNamed[] = {
    {"mma_flop", &Counters::mma_flop},
    {"ex2", &Counters::ex2},
    {"global_distinct_bytes", &Counters::global_distinct_bytes},
    {"async_bytes", &Counters::async_bytes},
    {"atomic_bytes", &Counters::atomic_bytes},
    {"wgmma_flop", &Counters::wgmma_flop},
    {"wgmma_shared_bytes", &Counters::wgmma_shared_bytes},
    {"bulk_global_bytes", &Counters::bulk_global_bytes},
    {"bulk_shared_bytes", &Counters::bulk_shared_bytes},
    {"bulk_stored_bytes", &Counters::bulk_stored_bytes},
    {"bulk_reduced_bytes", &Counters::bulk_reduced_bytes},
    {"barrier_waits", &Counters::barrier_waits},
    {"cluster_waits", &Counters::cluster_waits},
    {"mbarrier_waits", &Counters::mbarrier_waits},
    {"mbarrier_retries", &Counters::mbarrier_retries},
    {"wgmma_waits", &Counters::wgmma_waits},
    {"bulk_waits", &Counters::bulk_waits},
};

}  // namespace

void Counters::add(const Counters& other) {
    for (const Named& n : kNamed) this->*n.field += other.*n.field;
}

namespace {

// Passes one group of lanes needs: the largest number of distinct words in one of 32 banks.
u64 passes(const u32* offsets, u32 mask, u32 bytes) {
    u32 words[kLanes][kLanes];
    u8 count[kLanes] = {};
    u64 most = 0;
    for (; mask; mask &= mask - 1) {
        u32 first = offsets[__builtin_ctz(mask)] / 4, last = (offsets[__builtin_ctz(mask)] + bytes - 1) / 4;
        for (u32 word = first; word <= last; ++word) {
            u32 bank = word % kLanes;
            bool seen = false;
            for (int k = 0; k < count[bank] && !seen; ++k) seen = words[bank][k] == word;
            if (seen || count[bank] == kLanes) continue;
            words[bank][count[bank]++] = word;
            most = std::max<u64>(most, count[bank]);
        }
    }
    return most;
}

}  // namespace

namespace {

// Eight lanes of 16 bytes whose rows lie in different bank groups, or 32 lanes of 4 bytes in different banks: one pass.
bool without_conflict(const u32* offsets, u32 lanes, u32 bytes) {
    if (bytes != 16 && bytes != 4) return false;
    u32 shift = bytes == 16 ? 4 : 2, slots = bytes == 16 ? 7 : 31, used = 0, misaligned = 0;
    for (u32 left = lanes; left; left &= left - 1) {
        u32 offset = offsets[__builtin_ctz(left)];
        used |= 1u << (offset >> shift & slots);
        misaligned |= offset & (bytes - 1);
    }
    return !misaligned && __builtin_popcount(used) == __builtin_popcount(lanes);
}

}  // namespace

// Accesses of 8 and 16 bytes a lane are served by half and quarter warps.
void count_wavefronts(Profile& profile, const u32* offsets, u32 mask, u32 bytes) {
    u32 groups = bytes >= 16 ? 4 : bytes == 8 ? 2 : 1, width = kLanes / groups;
    for (u32 g = 0; g < groups; ++g) {
        u32 lanes = width == 32 ? mask : mask & (((1u << width) - 1) << (g * width));
        if (!lanes) continue;
        profile.wavefronts += without_conflict(offsets, lanes, bytes) ? 1 : passes(offsets, lanes, bytes);
        profile.ideal_wavefronts += 1;
    }
}

void count_row_wavefronts(Profile& profile, const u32* offsets, int rows) {
    for (int first = 0; first < rows; first += 8) {
        u32 groups = 0;
        for (int i = first; i < first + 8; ++i) groups |= 1u << ((offsets[i] >> 4) & 7);
        profile.ideal_wavefronts += 1;
        if (groups == 255) {  // no two rows share banks
            profile.wavefronts += 1;
            continue;
        }
        u64 most = 0;
        for (int i = first; i < first + 8; ++i) {
            u64 same = 1;
            for (int j = first; j < i; ++j)
                same += ((offsets[i] >> 4) & 7) == ((offsets[j] >> 4) & 7) && offsets[i] >> 4 != offsets[j] >> 4;
            most = std::max(most, same);
        }
        profile.wavefronts += most;
    }
}

void count_sectors(Profile& profile, const u64* addresses, u32 mask, u32 bytes) {
    u64 seen[2 * kLanes];
    int count = 0;
    for (; mask; mask &= mask - 1) {
        u64 a = addresses[__builtin_ctz(mask)];
        for (u64 sector = a / 32; sector <= (a + bytes - 1) / 32; ++sector) {
            int k = count;  // neighbours are the likeliest match
            while (k > 0 && seen[k - 1] != sector) --k;
            if (k == 0 && count < 2 * kLanes) seen[count++] = sector;
        }
    }
    profile.sectors += static_cast<u64>(count);
}

const char* class_name(OpClass cls) {
    static const char* names[] = {"integer",      "float",        "half",        "double",       "convert",
                                  "move",         "compare",      "special",     "mma",          "wgmma",
                                  "load_global",  "store_global", "load_shared", "store_shared", "ldmatrix",
                                  "local_memory", "param_memory", "atomic",      "async_copy",   "bulk_copy",
                                  "barrier",      "warp_sync",    "branch",      "other"};
    return names[static_cast<int>(cls)];
}

LaunchReport summarise(const Program& program, const std::vector<Profile>& profile, const Counters& counters) {
    LaunchReport report;
    auto& totals = report.totals;
    for (int c = 0; c < static_cast<int>(OpClass::kCount); ++c)
        totals[std::string("inst_") + class_name(static_cast<OpClass>(c))] = 0;
    double issues = 0, lanes = 0, wavefronts = 0, ideal = 0, sectors = 0;
    for (size_t pc = 0; pc < profile.size(); ++pc) {
        const Profile& p = profile[pc];
        if (!p.issues) continue;
        const Op& op = program.code[pc];
        totals[std::string("inst_") + class_name(op.cls)] += static_cast<double>(p.issues);
        if (op.cls == OpClass::Wgmma) {
            const WgmmaForm& f = *static_cast<const WgmmaForm*>(op.form);
            totals["wgmma_flop_" + f.shape()] += static_cast<double>(p.issues * f.warp_flop());
        }
        issues += static_cast<double>(p.issues);
        lanes += static_cast<double>(p.lanes);
        wavefronts += static_cast<double>(p.wavefronts);
        ideal += static_cast<double>(p.ideal_wavefronts);
        sectors += static_cast<double>(p.sectors);
        const Place& place = program.places[op.inst];
        if (!place.inst) continue;
        for (LineCounters* line :
             {&report.lines[program.module->source_of(*place.inst)], &report.ptx_lines[place.inst->line]}) {
            line->issues += p.issues;
            line->lanes += p.lanes;
            line->wavefronts += p.wavefronts;
            line->ideal_wavefronts += p.ideal_wavefronts;
            line->sectors += p.sectors;
            line->ptx_line = place.inst->line;
        }
    }
    totals["warp_instructions"] = issues;
    totals["thread_instructions"] = lanes;
    totals["active_lane_fraction"] = issues ? lanes / (issues * kLanes) : 0;
    totals["shared_wavefronts"] = wavefronts;
    totals["shared_wavefronts_ideal"] = ideal;
    totals["global_sectors"] = sectors;
    for (const Named& n : kNamed) totals[n.name] = static_cast<double>(counters.*n.field);
    totals["barriers"] = totals["inst_barrier"];
    return report;
}

}  // namespace ptxsim
