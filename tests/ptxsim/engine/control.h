// Control-flow handlers the decoder itself emits.
#pragma once

#include "decoder.h"

namespace ptxsim {

void op_exit(Warp& w, const Op& op);
void op_return(Warp& w, const Op& op);
void op_unsupported(Warp& w, const Op& op);

// Every file of opcode families adds its decode functions to the table.
void add_integer_families(FamilyTable& table);
void add_multiply_families(FamilyTable& table);
void add_bit_families(FamilyTable& table);
void add_logic_families(FamilyTable& table);
void add_move_families(FamilyTable& table);
void add_float_families(FamilyTable& table);
void add_approximate_families(FamilyTable& table);
void add_compare_families(FamilyTable& table);
void add_convert_families(FamilyTable& table);
void add_memory_families(FamilyTable& table);
void add_atomic_families(FamilyTable& table);
void add_matrix_families(FamilyTable& table);
void add_mma_families(FamilyTable& table);
void add_wmma_families(FamilyTable& table);
void add_wgmma_families(FamilyTable& table);
void add_warpgroup_families(FamilyTable& table);
void add_async_families(FamilyTable& table);
void add_sync_families(FamilyTable& table);
void add_shuffle_families(FamilyTable& table);
void add_control_families(FamilyTable& table);
void add_mbarrier_families(FamilyTable& table);
void add_cluster_families(FamilyTable& table);
void add_dependency_families(FamilyTable& table);
void add_tensor_families(FamilyTable& table);

constexpr void (*kFamilyGroups[])(FamilyTable&) = {
    add_integer_families,   add_multiply_families, add_bit_families,         add_logic_families,
    add_move_families,      add_float_families,    add_approximate_families, add_compare_families,
    add_convert_families,   add_memory_families,   add_atomic_families,      add_matrix_families,
    add_mma_families,       add_async_families,    add_sync_families,        add_shuffle_families,
    add_control_families,   add_mbarrier_families, add_wmma_families,        add_wgmma_families,
    add_warpgroup_families, add_cluster_families,  add_dependency_families,  add_tensor_families,
};

}  // namespace ptxsim
