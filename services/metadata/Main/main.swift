// Part of MemQ. SPDX-License-Identifier: Apache-2.0

import Glibc
import MemQMetadataService
import MemQRuntime

ServiceProcess.begin()
exit(await MetadataProgram.main(Array(CommandLine.arguments.dropFirst())))
