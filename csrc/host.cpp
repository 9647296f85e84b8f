// The only binary that is built per Python version: what this installation was compiled with.
//
// `seqrec doctor` compares it with what runs, so that a library built against another torch, or
// without the processor's vector instructions, is named instead of guessed at.  setup.py passes
// what the compiler cannot know: the flags it was called with, the torch it found, which parts were
// built, and why others were not.

#include <pybind11/pybind11.h>

#include <string>

namespace py = pybind11;

#define SEQREC_STRINGIFY_(x) #x
#define SEQREC_STRINGIFY(x) SEQREC_STRINGIFY_(x)

namespace {

std::string compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}

py::dict build_info() {
    py::dict info;
    info["compiler"] = compiler();
    info["standard"] = static_cast<long>(__cplusplus);
    info["flags"] = SEQREC_FLAGS;
    info["torch"] = SEQREC_TORCH;
    info["python"] = PY_VERSION;
    info["pybind11"] = SEQREC_STRINGIFY(PYBIND11_VERSION_MAJOR) "." SEQREC_STRINGIFY(
        PYBIND11_VERSION_MINOR);
    info["parts"] = SEQREC_PARTS;
    info["cuda"] = SEQREC_CUDA;
    info["left_out"] = SEQREC_LEFT_OUT;
    return info;
}

}  // namespace

PYBIND11_MODULE(_host, module) {
    module.doc() = "Host-side helpers compiled for this Python.";
    module.def("build_info", &build_info,
               "What this installation was compiled with: compiler, standard (the value of "
               "__cplusplus), flags, torch and python versions, pybind11 (major.minor); parts, the "
               "comma-separated names of the compiled parts; cuda, the architectures and the nvcc of "
               "the CUDA library, empty without one; left_out, which parts are not there and why.");
}
