// st.async and red.async (PTX ISA 9.7.9.12, 9.7.13.7): a store, or a reduction, in the shared memory of another CTA of
// the cluster, which an mbarrier there counts once it is done.
#pragma once

#include "decoder.h"

namespace ptxsim {

void decode_async_store(Form& f);
void decode_async_reduction(Form& f);

}  // namespace ptxsim
