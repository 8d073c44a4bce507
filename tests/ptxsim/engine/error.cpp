#include "error.h"

#include <cstdio>
#include <sstream>

namespace ptxsim {

const char* error_name(ErrorKind kind) {
    switch (kind) {
        case ErrorKind::OutOfBounds: return "OutOfBounds";
        case ErrorKind::Misaligned: return "Misaligned";
        case ErrorKind::Undefined: return "Undefined";
        case ErrorKind::Race: return "Race";
        case ErrorKind::Divergence: return "Divergence";
        case ErrorKind::Deadlock: return "Deadlock";
        case ErrorKind::LaunchLimit: return "LaunchLimit";
        case ErrorKind::Unsupported: return "Unsupported";
        case ErrorKind::Trap: return "Trap";
        case ErrorKind::BadProgram: return "BadProgram";
    }
    return "SimError";
}

std::string hex(u64 value) {
    char text[32];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

void SimError::compose() {
    std::ostringstream out;
    out << message;
    if (has_address && message.find(hex(address)) == std::string::npos) out << " Address " << hex(address) << ".";
    if (!tensor.empty() && message.find(tensor) == std::string::npos) out << " Tensor " << tensor << ".";
    if (!kernel.empty()) out << " Kernel " << kernel;
    if (ptx_line > 0) out << ", PTX line " << ptx_line << " `" << ptx_text << "`";
    if (!source.empty()) out << " (" << source << ")";
    if (cta[0] >= 0) out << ", CTA (" << cta[0] << ", " << cta[1] << ", " << cta[2] << ")";
    if (warp >= 0) out << ", warp " << warp;
    if (lane >= 0) out << ", lane " << lane;
    if (!kernel.empty()) out << ".";
    paragraph = out.str();
}

u32 check_bit(const std::string& name) {
    if (name == "bounds") return kCheckBounds;
    if (name == "align") return kCheckAlign;
    if (name == "undefined") return kCheckUndefined;
    if (name == "race") return kCheckRace;
    if (name == "race_global") return kCheckRaceGlobal;
    if (name == "divergence") return kCheckDivergence;
    if (name == "deadlock") return kCheckDeadlock;
    if (name == "limits") return kCheckLimits;
    if (name == "async") return kCheckAsync;
    if (name == "race_warp") return kCheckRaceWarp;
    if (name == "proxy") return kCheckProxy;
    if (name == "proxy_war") return kCheckProxyWar;
    if (name == "mbarrier") return kCheckMbarrier;
    if (name == "wgmma") return kCheckWgmma;
    if (name == "release_by_warp") return kCheckReleaseByWarp;
    if (name == "elect") return kCheckElect;
    if (name == "descriptor") return kCheckDescriptor;
    if (name == "init_fence") return kCheckInitFence;
    if (name == "undefined_branch") return kCheckUndefinedBranch;
    return 0;
}

}  // namespace ptxsim
