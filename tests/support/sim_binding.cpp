// The twin of csrc/bindings/cuda*.cpp for CPU tensors: the same functions and the kernels that ship,
// linked with the simulator's CUDA runtime. Params are handed to Python, which tells the simulator
// what memory they describe and then launches.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "../../csrc/bindings/cuda_bwd.h"
#include "../../csrc/bindings/cuda_decode.h"

namespace py = pybind11;

namespace diffattn::bindings {
namespace {

py::object* launcher = nullptr;  // never freed: the interpreter may go first

template <class Params>
void launch(const Params& p, const Tensor& /*q*/) {
  const py::gil_scoped_acquire lock;
  try {
    (*launcher)(py::cast(&p, py::return_value_policy::reference));
  } catch (const py::error_already_set& error) {  // torch knows another pybind11
    throw std::runtime_error(error.what());
  }
}

void fwd(const FwdParams& p) {
  const py::gil_scoped_release unlock;  // the simulator asks Python for the kernels' registers
  cuda::fwd(p, nullptr);
}

void bwd(const BwdParams& p, uintptr_t workspace) {
  const py::gil_scoped_release unlock;
  cuda::bwd(p, reinterpret_cast<void*>(workspace), nullptr);
}

void decode(const DecodeParams& p, uintptr_t workspace) {
  const py::gil_scoped_release unlock;
  cuda::decode(p, reinterpret_cast<void*>(workspace), nullptr);
}

template <class Struct, class Pointer>
auto address(Pointer Struct::* member) {
  return std::pair(
      [member](const Struct& s) { return reinterpret_cast<uintptr_t>(s.*member); },
      [member](Struct& s, uintptr_t at) { s.*member = reinterpret_cast<Pointer>(at); });
}

template <class Class, class Pointer>
void def_address(Class& c, const char* name, Pointer Class::type::* member) {
  const auto [get, set] = address(member);
  c.def_property(name, get, set);
}

void bind_parts(py::module_& m) {
  py::enum_<DType>(m, "DType").value("f16", DType::f16).value("bf16", DType::bf16);
  py::class_<View> view(m, "View");
  view.def(py::init<>())
      .def_readwrite("batch", &View::batch)
      .def_readwrite("row", &View::row)
      .def_readwrite("head", &View::head)
      .def_readwrite("comp", &View::comp);
  def_address(view, "data", &View::data);
  py::class_<Shape>(m, "Shape")
      .def_readwrite("batch", &Shape::batch)
      .def_readwrite("seqlen_q", &Shape::seqlen_q)
      .def_readwrite("seqlen_k", &Shape::seqlen_k)
      .def_readwrite("nheads", &Shape::nheads)
      .def_readwrite("nheads_k", &Shape::nheads_k)
      .def_readwrite("headdim", &Shape::headdim)
      .def_readwrite("headdim_v", &Shape::headdim_v)
      .def_readwrite("k_components", &Shape::k_components);
  py::class_<Window>(m, "Window")
      .def_readwrite("left", &Window::left)
      .def_readwrite("right", &Window::right);
  py::class_<Norm> norm(m, "Norm");
  norm.def_readwrite("eps", &Norm::eps).def_readwrite("scale", &Norm::scale);
  def_address(norm, "weight", &Norm::weight);
  py::class_<Varlen> varlen(m, "Varlen");
  varlen.def_readwrite("total_q", &Varlen::total_q).def_readwrite("total_k", &Varlen::total_k);
  def_address(varlen, "cu_seqlens_q", &Varlen::cu_seqlens_q);
  def_address(varlen, "cu_seqlens_k", &Varlen::cu_seqlens_k);
}

void bind_params(py::module_& m) {
  py::class_<FwdParams>(m, "FwdParams")
      .def(py::init<>())
      .def_readwrite("dtype", &FwdParams::dtype)
      .def_readwrite("shape", &FwdParams::shape)
      .def_readwrite("q", &FwdParams::q)
      .def_readwrite("k", &FwdParams::k)
      .def_readwrite("v", &FwdParams::v)
      .def_readwrite("lam", &FwdParams::lam)
      .def_readwrite("out", &FwdParams::out)
      .def_readwrite("lse", &FwdParams::lse)
      .def_readwrite("o", &FwdParams::o)
      .def_readwrite("o2", &FwdParams::o2)
      .def_readwrite("rstd", &FwdParams::rstd)
      .def_readwrite("softmax_scale", &FwdParams::softmax_scale)
      .def_readwrite("window", &FwdParams::window)
      .def_readwrite("norm", &FwdParams::norm)
      .def_readwrite("varlen", &FwdParams::varlen);
  py::class_<BwdParams> bwd(m, "BwdParams");
  bwd.def(py::init<>())
      .def_readwrite("dtype", &BwdParams::dtype)
      .def_readwrite("shape", &BwdParams::shape)
      .def_readwrite("q", &BwdParams::q)
      .def_readwrite("k", &BwdParams::k)
      .def_readwrite("v", &BwdParams::v)
      .def_readwrite("lam", &BwdParams::lam)
      .def_readwrite("o", &BwdParams::o)
      .def_readwrite("o2", &BwdParams::o2)
      .def_readwrite("lse", &BwdParams::lse)
      .def_readwrite("rstd", &BwdParams::rstd)
      .def_readwrite("dout", &BwdParams::dout)
      .def_readwrite("dlse", &BwdParams::dlse)
      .def_readwrite("dq", &BwdParams::dq)
      .def_readwrite("dk", &BwdParams::dk)
      .def_readwrite("dv", &BwdParams::dv)
      .def_readwrite("dlam", &BwdParams::dlam)
      .def_readwrite("softmax_scale", &BwdParams::softmax_scale)
      .def_readwrite("window", &BwdParams::window)
      .def_readwrite("norm", &BwdParams::norm)
      .def_readwrite("varlen", &BwdParams::varlen)
      .def_readwrite("deterministic", &BwdParams::deterministic);
  def_address(bwd, "dnorm_weight", &BwdParams::dnorm_weight);
}

void bind_cache(py::module_& m) {
  py::class_<Rotary> rotary(m, "Rotary");
  rotary.def_readwrite("seqlen", &Rotary::seqlen)
      .def_readwrite("dim", &Rotary::dim)
      .def_readwrite("interleaved", &Rotary::interleaved);
  def_address(rotary, "cos", &Rotary::cos);
  def_address(rotary, "sin", &Rotary::sin);
  py::class_<Paging> paging(m, "Paging");
  paging.def_readwrite("stride", &Paging::stride).def_readwrite("page_size", &Paging::page_size);
  def_address(paging, "block_table", &Paging::block_table);
  py::class_<Cache> cache(m, "Cache");
  cache.def_readwrite("seqlen_new", &Cache::seqlen_new)
      .def_readwrite("blocks", &Cache::blocks)
      .def_readwrite("paging", &Cache::paging)
      .def_readwrite("rotary", &Cache::rotary);
  def_address(cache, "seqlens", &Cache::seqlens);
  def_address(cache, "batch_idx", &Cache::batch_idx);
  def_address(cache, "leftpad", &Cache::leftpad);
  py::class_<DecodeParams>(m, "DecodeParams")
      .def(py::init<>())
      .def_readwrite("dtype", &DecodeParams::dtype)
      .def_readwrite("shape", &DecodeParams::shape)
      .def_readwrite("q", &DecodeParams::q)
      .def_readwrite("lam", &DecodeParams::lam)
      .def_readwrite("out", &DecodeParams::out)
      .def_readwrite("lse", &DecodeParams::lse)
      .def_readwrite("k_cache", &DecodeParams::k_cache)
      .def_readwrite("v_cache", &DecodeParams::v_cache)
      .def_readwrite("k_new", &DecodeParams::k_new)
      .def_readwrite("v_new", &DecodeParams::v_new)
      .def_readwrite("cache", &DecodeParams::cache)
      .def_readwrite("softmax_scale", &DecodeParams::softmax_scale)
      .def_readwrite("window", &DecodeParams::window)
      .def_readwrite("norm", &DecodeParams::norm)
      .def_readwrite("num_splits", &DecodeParams::num_splits);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(diffattn_sim, CPU, m) {
  m.impl("fwd", TORCH_BOX(&cuda_fwd<launch<FwdParams>>));
  m.impl("bwd", TORCH_BOX(&cuda_bwd<launch<BwdParams>>));
  m.impl("decode", TORCH_BOX(&cuda_decode<launch<DecodeParams>>));
}

PYBIND11_MODULE(sim_binding, m) {
  bind_parts(m);
  bind_params(m);
  bind_cache(m);
  m.def("fwd", &fwd);
  m.def("bwd", &bwd);
  m.def("bwd_workspace", &cuda::bwd_workspace);
  m.def("decode", &decode);
  m.def("decode_workspace", &cuda::decode_workspace);
  m.def("set_launcher", [](py::object f) { launcher = new py::object(std::move(f)); });
}

}  // namespace diffattn::bindings
