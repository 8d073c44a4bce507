#include "control.h"
namespace ptxsim {
void add_matrix_families(FamilyTable&){} void add_mma_families(FamilyTable&){} void add_async_families(FamilyTable&){} void add_mbarrier_families(FamilyTable&){}
}
