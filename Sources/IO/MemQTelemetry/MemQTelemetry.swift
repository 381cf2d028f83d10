// Part of MemQ. SPDX-License-Identifier: Apache-2.0
