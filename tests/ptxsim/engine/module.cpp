// The Python face of the engine: thin, the package ptxsim gives it manners.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "decoder.h"
#include "device.h"
#include "parser.h"
#include "runtime_python.h"
#include "tensor_map.h"

namespace py = pybind11;
using namespace ptxsim;

namespace ptxsim {

py::object to_python(const SimError& error) {
    py::object cls = py::module_::import("ptxsim.errors").attr(error_name(error.kind));
    py::object exception = cls(py::str(error.what()));
    auto set = [&](const char* name, py::object value) { exception.attr(name) = std::move(value); };
    set("message", py::str(error.message));
    set("kernel", py::str(error.kernel));
    set("ptx_line", error.ptx_line > 0 ? py::object(py::int_(error.ptx_line)) : py::none());
    set("ptx_text", py::str(error.ptx_text));
    set("source", py::str(error.source));
    set("cta", error.cta[0] >= 0 ? py::object(py::make_tuple(error.cta[0], error.cta[1], error.cta[2])) : py::none());
    set("warp", error.warp >= 0 ? py::object(py::int_(error.warp)) : py::none());
    set("lane", error.lane >= 0 ? py::object(py::int_(error.lane)) : py::none());
    set("address", error.has_address ? py::object(py::int_(error.address)) : py::none());
    set("tensor", error.tensor.empty() ? py::object(py::none()) : py::str(error.tensor));
    return exception;
}

namespace {
void translate(std::exception_ptr pointer) {
    try {
        if (pointer) std::rethrow_exception(pointer);
    } catch (const SimError& error) {
        py::object exception = to_python(error);
        PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
    }
}

py::dict to_python(const LineCounters& c) {
    py::dict d;
    d["ptx_line"] = c.ptx_line;
    d["warp_instructions"] = c.issues;
    d["thread_instructions"] = c.lanes;
    d["shared_wavefronts"] = c.wavefronts;
    d["shared_wavefronts_ideal"] = c.ideal_wavefronts;
    d["global_sectors"] = c.sectors;
    return d;
}

}  // namespace

py::dict to_python(const LaunchReport& report) {
    py::dict totals, lines, ptx;
    for (const auto& [name, value] : report.totals) {
        if (name == "active_lane_fraction") totals[py::str(name)] = value;
        else totals[py::str(name)] = static_cast<u64>(value);
    }
    for (const auto& [line, c] : report.lines) lines[py::str(line)] = to_python(c);
    for (const auto& [line, c] : report.ptx_lines) ptx[py::int_(line)] = to_python(c);
    totals["lines"] = lines;
    totals["ptx_lines"] = ptx;
    return totals;
}

}  // namespace ptxsim

namespace {

struct ModuleHandle {
    std::shared_ptr<Module> module;
    ~ModuleHandle() {
        if (module.use_count() == 1) release_module_storage(*module);
    }
};

py::dict launch(Device& device, Program& program, std::array<u32, 3> grid, std::array<u32, 3> block,
                const py::bytes& params, u32 shared, bool cooperative, std::array<u32, 3> cluster, bool programmatic) {
    LaunchConfig config;
    std::copy(grid.begin(), grid.end(), config.grid);
    std::copy(block.begin(), block.end(), config.block);
    std::string data = params;
    config.params.assign(data.begin(), data.end());
    config.dynamic_shared = shared;
    config.cooperative = cooperative;
    config.programmatic = programmatic;
    std::copy(cluster.begin(), cluster.end(), config.cluster);
    LaunchReport report;
    {
        py::gil_scoped_release release;
        report = device.launch(program, config);
    }
    return to_python(report);
}

std::vector<std::string> kernel_names(const Module& module) {
    std::vector<std::string> names;
    for (const Function& f : module.functions)
        if (f.entry && f.defined) names.push_back(f.name);
    return names;
}

void bind_programs(py::module_& m) {
    py::class_<ModuleHandle>(m, "Module")
        .def_property_readonly("kernels", [](const ModuleHandle& h) { return kernel_names(*h.module); })
        .def_property_readonly("target", [](const ModuleHandle& h) { return h.module->target; })
        .def_property_readonly("text", [](const ModuleHandle& h) { return h.module->text; })
        .def("variable",
             [](const ModuleHandle& h, const std::string& name) {
                 u64 size = 0, address = module_variable_address(h.module, name, &size);
                 return py::make_tuple(address, size);
             })
        .def(
            "decode", [](const ModuleHandle& h, const std::string& name) { return decode_kernel(h.module, name); },
            py::call_guard<py::gil_scoped_release>());
    m.def(
        "parse", [](std::string text) { return ModuleHandle{parse_ptx(std::move(text))}; },
        py::call_guard<py::gil_scoped_release>());
    py::class_<Program, std::shared_ptr<Program>>(m, "Program")
        .def_readonly("name", &Program::name)
        .def_readonly("param_bytes", &Program::param_bytes)
        .def_readonly("static_shared", &Program::static_shared)
        .def_readwrite("registers", &Program::registers)
        .def_readwrite("spill_bytes", &Program::spill_bytes)
        .def_readwrite("max_dynamic_shared", &Program::max_dynamic_shared)
        .def_property_readonly("ops", [](const Program& p) { return p.code.size(); })
        .def_property_readonly("unsupported", [](const Program& p) { return p.messages.size(); })
        .def_property_readonly("params", [](const Program& p) {
            py::list out;
            for (const ParamSlot& s : p.params) out.append(py::make_tuple(s.name, s.offset, s.size));
            return out;
        });
}

void bind_memory(py::module_& m) {
    py::class_<Allocation, AllocationPtr>(m, "Allocation", py::buffer_protocol())  // a view keeps its allocation alive
        .def_buffer([](Allocation& a) {
            return py::buffer_info(reinterpret_cast<u8*>(a.base), static_cast<py::ssize_t>(a.size));
        })
        .def_readonly("address", &Allocation::base)
        .def_readonly("nbytes", &Allocation::size)
        .def_readonly("name", &Allocation::name)
        .def_property_readonly("undefined_bytes", &Allocation::undefined_bytes)
        .def("read",
             [](const Allocation& a, u64 offset, u64 n) {
                 if (offset > a.size || n > a.size - offset) throw std::out_of_range("outside the allocation");
                 return py::bytes(reinterpret_cast<const char*>(a.base + offset), n);
             })
        .def("write",
             [](Allocation& a, u64 offset, const py::bytes& data) {
                 std::string text = data;
                 if (offset > a.size || text.size() > a.size - offset)
                     throw std::out_of_range("outside the allocation");
                 std::memcpy(reinterpret_cast<void*>(a.base + offset), text.data(), text.size());
                 if (a.defined) std::memset(a.defined + offset, 1, text.size());
             })
        .def("undefined",
             [](const Allocation& a) {
                 std::string map(a.size, '\0');
                 for (u64 i = 0; i < a.size; ++i) map[i] = a.undefined(i);
                 return py::bytes(map);
             })
        .def("allow", &Allocation::allow)
        .def("release", [](Allocation& a) { MemoryMap::instance().remove(a.base); });
    m.def("allocate", [](u64 bytes, const std::string& name, bool poison, bool sparse) {
        return MemoryMap::instance().create(bytes, name, poison, sparse);
    });
    m.def("register", [](u64 address, u64 bytes, const std::string& name, bool writable, bool defined) {
        return MemoryMap::instance().adopt(address, bytes, name, writable, defined);
    });
    m.def("unregister", [](u64 address) { MemoryMap::instance().remove(address); });
}

py::bytes tensor_map(u32 type, u64 base, const std::vector<u64>& dims, const std::vector<u64>& strides,
                     const std::vector<u32>& box, const std::vector<u32>& element_strides, u32 interleave, u32 swizzle,
                     bool nan_fill) {
    TensorMapArguments a;
    a.type = type;
    a.rank = static_cast<u32>(dims.size());
    a.base = base;
    a.interleave = interleave;
    a.swizzle = swizzle;
    a.fill = nan_fill;
    size_t rank = std::min<size_t>(dims.size(), kMaxRank);
    if (box.size() != dims.size() || strides.size() + 1 != dims.size() || element_strides.size() != dims.size())
        throw SimError(ErrorKind::BadProgram,
                       "A tensor map of rank n needs n dims, boxes and element strides and n - 1 "
                       "strides.");
    for (size_t i = 0; i < rank; ++i) {
        a.dims[i] = dims[i];
        a.box[i] = box[i];
        a.element_strides[i] = element_strides[i];
        if (i + 1 < rank) a.strides[i] = strides[i];
    }
    char bytes[kTensorMapBytes];
    write_tensor_map(encode_tensor_map(a), reinterpret_cast<u8*>(bytes));
    return py::bytes(bytes, sizeof bytes);
}

void bind_device(py::module_& m) {
    py::class_<Device, std::shared_ptr<Device>>(m, "Device")
        .def(py::init<const std::string&, u64, int, u32>())
        .def_readwrite("seed", &Device::seed)
        .def_readwrite("threads", &Device::threads)
        .def_readwrite("checks", &Device::checks)
        .def_readwrite("instruction_limit", &Device::instruction_limit)
        .def_readwrite("echo", &Device::echo)
        .def("take_output", &Device::take_output)
        .def("launch", &launch);
    m.def("check_bit", &check_bit);
    m.def("tensor_map", &tensor_map);
}

}  // namespace

PYBIND11_MODULE(_ptxsim, m) {
    py::register_exception_translator(&translate);
    bind_programs(m);
    bind_memory(m);
    bind_device(m);
    bind_runtime(m);
}
