// Operands → Refs (PTX ISA 6: instruction operands).
#include "control.h"
#include "decoder.h"
#include "move.h"
#include "parser.h"
#include "special_registers.h"

namespace ptxsim {

namespace {
int class_bytes(RegClass cls) {
    return cls == RegClass::B64 ? 8 : cls == RegClass::B16 ? 2 : cls == RegClass::B128 ? 16 : 4;
}
}  // namespace

int Decoder::operand_bytes(const Operand& operand) const {
    if (operand.kind != Operand::kReg) return 0;
    return class_bytes(function_->regs[operand.id].cls);
}

bool Decoder::is_predicate(const Operand& operand) const {
    return operand.kind == Operand::kReg && function_->regs[operand.id].cls == RegClass::Pred;
}

// Immediates are constants broadcast to 32 lanes, so that handlers see registers only.
Ref Decoder::constant(u64 bits, int bytes) {
    int cell = bytes == 8 ? 8 : 4;
    if (bytes < 8) bits &= (1ull << (8 * bytes)) - 1;
    auto known = constants_.find({bits, cell});
    if (known != constants_.end()) return known->second;
    Ref ref = kConstants << kFileShift | static_cast<u32>(program_.constants.size());
    for (int lane = 0; lane < kLanes; ++lane) {
        program_.constants.push_back(static_cast<u32>(bits));
        if (cell == 8) program_.constants.push_back(static_cast<u32>(bits >> 32));
    }
    constants_.emplace(std::make_pair(bits, cell), ref);
    return ref;
}

bool Decoder::symbol_address(const Operand& operand, u64& bits) {
    auto shared = shared_offsets_.find(operand.name);
    if (shared != shared_offsets_.end()) {
        bits = shared->second + static_cast<u64>(operand.offset);
        return true;
    }
    bits = module_variable_address(program_.module, operand.name) + static_cast<u64>(operand.offset);
    if (module_.variable_index.count(operand.name)) return true;
    auto function = module_.function_index.find(operand.name);
    if (function != module_.function_index.end()) {
        function_index(operand.name);
        bits = kFunctionWindow | static_cast<u64>(function->second);
        return true;
    }
    for (const ParamSlot& param : program_.params) {
        if (param.name != operand.name || current_ != 0) continue;
        bits = param.offset + static_cast<u64>(operand.offset);
        return true;
    }
    return false;
}

Ref Decoder::source(const Operand& operand, int bytes) {
    if (operand.kind == Operand::kReg) {
        RegClass cls = function_->regs[operand.id].cls;
        if (cls == RegClass::Pred || (class_bytes(cls) == 8) != (bytes == 8)) {
            throw SimError(ErrorKind::Unsupported, "This instruction is not supported: operand " + operand.name +
                                                       " has another width than the instruction.");
        }
        return cell_[operand.id];
    }
    if (operand.kind == Operand::kImm) {
        if (operand.is_float && operand.float_size != bytes)
            return source(operand, bytes == 8 ? "f64" : bytes == 4 ? "f32" : "f16");
        return constant(operand.bits, bytes);
    }
    if (operand.kind == Operand::kSymbol) {
        Ref ref;
        int width;
        if (special_register(operand.name, ref, width)) {
            if ((width == 8) == (bytes == 8)) return ref;
            Ref wide = temporary(bytes);  // a 32-bit special register read as 64 bits, or the reverse
            emit_cast(*this, wide, bytes, ref, width);
            return wide;
        }
        bool local = false;
        u32 offset = local_offset(operand.name, local);
        if (local) {
            Ref ref = temporary(bytes);
            Op& op = emit(bytes == 8 ? op_local_address<u64> : op_local_address<u32>, OpClass::Move);
            op.dst = ref;
            op.offset = offset + operand.offset;
            return ref;
        }
        u64 bits;
        if (symbol_address(operand, bits)) return constant(bits, bytes);
    }
    throw SimError(ErrorKind::Unsupported,
                   "This instruction is not supported: its operand `" + operand.name + "` is not known.");
}

Ref Decoder::source(const Operand& operand, const std::string& type) {
    int bytes = type_size(type);
    if (operand.kind == Operand::kImm && operand.is_float && operand.float_size != bytes) {
        double value =
            operand.float_size == 4 ? bit_cast<float>(static_cast<u32>(operand.bits)) : bit_cast<double>(operand.bits);
        if (type == "f32") return constant(bit_cast<u32>(static_cast<float>(value)), 4);
        if (type == "f64") return constant(bit_cast<u64>(value), 8);
        throw SimError(ErrorKind::Unsupported, "This instruction is not supported: a float literal as ." + type + ".");
    }
    return source(operand, bytes);
}

Ref Decoder::dest(const Operand& operand, int bytes) {
    const FunctionLayout& here = program_.functions[current_];
    if (operand.kind == Operand::kSink) return bytes == 8 ? here.narrow_cells * kLanes : 0;  // slot 0 of either class
    if (operand.kind != Operand::kReg)
        throw SimError(ErrorKind::Unsupported, "This instruction is not supported: its destination is not a register.");
    RegClass cls = function_->regs[operand.id].cls;
    if (cls == RegClass::Pred || (class_bytes(cls) == 8) != (bytes == 8)) {
        throw SimError(ErrorKind::Unsupported, "This instruction is not supported: destination " + operand.name +
                                                   " has another width than the instruction.");
    }
    return cell_[operand.id];
}

int Decoder::predicate_dest(const Operand& operand) {
    if (operand.kind == Operand::kSink) return 0;
    if (!is_predicate(operand))
        throw SimError(ErrorKind::Unsupported,
                       "This instruction is not supported: its destination is not a predicate.");
    return static_cast<int>(cell_[operand.id]);
}

int Decoder::predicate(const Operand& operand) {
    const FunctionLayout& here = program_.functions[current_];
    bool literal = operand.kind == Operand::kImm;
    if (!literal && !is_predicate(operand))
        throw SimError(ErrorKind::Unsupported,
                       "This instruction is not supported: a predicate operand is not a predicate.");
    if (!literal && !operand.negated) return static_cast<int>(cell_[operand.id]);
    int temp = static_cast<int>(here.predicates - 8 + temporary_predicates_used_++);
    Op& op = emit(literal ? op_set_predicate : op_not_predicate, OpClass::Move);
    op.to_p = temp;
    if (literal) op.imm = operand.bits ? kFull : 0;
    else op.p = static_cast<int>(cell_[operand.id]);
    return temp;
}

const Ref* Decoder::list(const std::vector<u32>& refs) {
    program_.lists.push_back(refs);
    return program_.lists.back().data();
}

// [reg + imm], [variable + imm], [imm].
Address Decoder::address(const Operand& operand, Space space) {
    if (operand.kind != Operand::kAddress || operand.items.size() != 1)
        throw SimError(ErrorKind::Unsupported, "This instruction is not supported: its address operand.");
    const Operand& base = operand.items[0];
    Address out;
    out.offset = operand.offset;
    out.space = space;
    if (base.kind == Operand::kSymbol) {
        bool local = false;
        u32 offset = local_offset(base.name, local);
        if (local) {
            out.framed = true;
            out.offset += offset + base.offset;
            out.base = constant(0, 4);
            out.base_bytes = 4;
            return out;
        }
        u64 bits;
        if (!symbol_address(base, bits))
            throw SimError(ErrorKind::Unsupported,
                           "This instruction is not supported: the symbol `" + base.name + "` is not known.");
        out.kernel_param = space == Space::Param;
        out.offset += static_cast<s64>(bits);
        out.base = constant(0, 8);
        return out;
    }
    if (base.kind == Operand::kImm) {
        out.base = constant(base.bits, 8);
        return out;
    }
    out.kernel_param = space == Space::Param;
    out.base_bytes = operand_bytes(base);  // 32-bit addresses are legal in the shared and local windows
    out.base = source(base, out.base_bytes);
    return out;
}

}  // namespace ptxsim
